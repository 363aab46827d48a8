"""The next token of each row from its logits: greedy, or drawn by the row's own random numbers.

A row's numbers come from a counter-based generator (Philox, Salmon et al. 2011) keyed by the prompt and the seed, so an
answer does not depend on what else is in the batch.

Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751) without sorting the vocabulary: a token is drawn from the
whole distribution and drawn again unless the tokens above it hold less than `top_p`. What is accepted is distributed as
the renormalised nucleus; at top_p 0.95 one draw in twenty is repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from preftune.errors import ModelError
from preftune.generation.request import Sampling

Draw = Callable[[], float]
PATIENCE = 4  # rejected draws before the nucleus is sorted out, which a small top_p would need many of
BLOCK = 256  # tokens; a cumulative sum of blocks and then within one is faster than over the vocabulary, and more exact


class Drawing(Protocol):
    """What is needed of a row."""

    @property
    def draw(self) -> Draw: ...

    @property
    def sampling(self) -> Sampling: ...


@dataclass
class Choices:
    """Tokens, one a row, and their log-probs (nats) where any row asked for them.

    `tops` are the likeliest tokens of each row, (id, log-prob), as many as it asked for.
    """

    tokens: list[int]
    logprobs: list[float] | None
    tops: list[tuple[tuple[int, float], ...]] | None = None


def random_numbers(prompt: Sequence[int], seed: int) -> Draw:
    """Uniform numbers in [0, 1), a function of the prompt's ids and the seed."""
    said = np.asarray(prompt, dtype=np.int64).tobytes() + str(seed).encode()
    key = int.from_bytes(hashlib.blake2b(said, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random


def choose(logits: Tensor, rows: Sequence[Drawing]) -> Choices:
    """The next token of each row.

    Args:
        logits: (B, V), any float type; -inf is a token that cannot come.
        rows: B of them.

    Raises:
        ModelError: a row's logits have no largest finite number.
    """
    logits = logits.float()
    best, tokens = logits.max(dim=-1)
    if not bool(best.isfinite().all()):
        raise ModelError("The model's logits are not finite numbers. Check its weights, or load it in float32.")
    limited = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and row.sampling.top_k]
    free = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and not row.sampling.top_k]
    for members, draw in ((limited, _draw_limited), (free, _draw_free)):
        if members:
            place = torch.tensor(members, device=logits.device)
            own = logits if len(members) == len(rows) else logits[place]
            tokens[place] = draw(own, [rows[i] for i in members])
    logprobs = None
    if any(row.sampling.logprobs for row in rows):
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        logprobs = (chosen - logits.logsumexp(dim=-1)).tolist()
    return Choices(tokens.tolist(), logprobs, _tops(logits, [row.sampling.top_logprobs for row in rows]))


def _tops(logits: Tensor, asked: Sequence[int]) -> list[tuple[tuple[int, float], ...]] | None:
    """The likeliest tokens of each row with their log-probs, or None where no row asked."""
    if not any(asked):
        return None
    values, ids = logits.topk(min(max(asked), logits.shape[1]), dim=-1)
    logps = (values - logits.logsumexp(dim=-1, keepdim=True)).tolist()
    return [tuple(zip(row[:n], own[:n], strict=True)) for row, own, n in zip(ids.tolist(), logps, asked, strict=True)]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _tempered(logits: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Logits below their largest by the temperature, whatever that is: 0 / 1e-40 is 0, and -inf / 1e300 is -inf."""
    limits = torch.finfo(torch.float32)
    temperature = _column([row.sampling.temperature for row in rows], logits).clamp(limits.tiny, limits.max)
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def _draw_free(logits: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Tokens (B,) of rows without a top_k."""
    probs = _tempered(logits, rows).softmax(dim=-1)
    tokens = _invert(probs, [row.draw() for row in rows])
    top_p = _column([row.sampling.top_p for row in rows], logits)
    for _ in range(PATIENCE):
        outside = ~_in_nucleus(probs, tokens, top_p)
        again = outside.nonzero()[:, 0].tolist()
        if not again:
            return tokens
        tokens[outside] = _invert(probs[outside], [rows[i].draw() for i in again])
    outside = ~_in_nucleus(probs, tokens, top_p)
    again = outside.nonzero()[:, 0].tolist()
    if again:
        ordered, ids = probs[outside].sort(dim=-1, descending=True)
        tokens[outside] = _from_ordered(ordered, ids, [rows[i] for i in again])
    return tokens


def _draw_limited(logits: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Tokens (B,) of rows with a top_k."""
    limits = [min(row.sampling.top_k, logits.shape[1]) for row in rows]
    best, ids = logits.topk(max(limits), dim=-1)
    beyond = torch.arange(best.shape[1], device=best.device) >= torch.tensor(limits, device=best.device)[:, None]
    best = _tempered(best, rows).masked_fill(beyond, -torch.inf)
    return _from_ordered(best.softmax(dim=-1), ids, rows)


def _from_ordered(probs: Tensor, ids: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Tokens (B,) drawn from the nucleus of probabilities (B, C) that fall from left to right; `ids` are theirs."""
    above = probs.cumsum(dim=-1) - probs
    probs = probs.masked_fill(above >= _column([row.sampling.top_p for row in rows], probs), 0.0)
    return ids.gather(1, _invert(probs, [row.draw() for row in rows])[:, None])[:, 0]


def _in_nucleus(probs: Tensor, tokens: Tensor, top_p: Tensor) -> Tensor:
    """(B,) bool: the token is possible, and the tokens above it hold less than `top_p` (B, 1)."""
    own = probs.gather(1, tokens[:, None])
    above = torch.where(probs > own, probs, 0.0).sum(dim=-1, keepdim=True)
    return ((own > 0) & (above < top_p))[:, 0]


def _invert(probs: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The inverse of the cumulative distribution: probabilities (B, C), of any sum, and numbers in [0, 1) -> (B,)."""
    rows, width = probs.shape
    blocks = torch.nn.functional.pad(probs, (0, -width % BLOCK)).view(rows, -1, BLOCK)
    ends = blocks.sum(dim=-1).double().cumsum(dim=-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=probs.device)[:, None] * ends[:, -1:]
    block = (ends <= target).sum(dim=-1).clamp_max(ends.shape[1] - 1)
    every = torch.arange(rows, device=probs.device)
    own = blocks[every, block]
    within = target[:, 0] - ends[every, block] + own.sum(dim=-1).double()
    place = (own.double().cumsum(dim=-1) <= within[:, None]).sum(dim=-1)
    last = (own > 0).double().cumsum(dim=-1).argmax(dim=-1)  # rounding may lead past the last possible token
    return (block * BLOCK + torch.minimum(place, last)).clamp_max(width - 1)
