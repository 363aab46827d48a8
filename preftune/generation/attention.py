"""Attention of the engine's two passes, registered with the attention interface of transformers.

The model runs without a cache of its own: every layer hands its keys and values to `cell_attention`, which puts them
into the engine's `Cells` and lets the queries look there. Two kinds of pass:

    Reading   whole prompts, (B, T), padded on the right: causal attention, keys and values kept
    Writing   one token of every answer, (B, 1): its prompt and what was written before

The name has no mask function, so transformers builds no mask. Soft-caps, sliding windows and sinks are as in
`preftune.model.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from preftune.errors import ModelError
from preftune.generation.cells import Cells

NAME = "preftune_cells"
QUERY_BLOCK = 256  # of a prompt, where scores are made as a matrix


@dataclass
class Reading:
    """Prompts from line `first` on; `lengths` (B,) of the real tokens in each row."""

    cells: Cells
    first: int
    lengths: list[int]
    layers_served: int = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        lines = self.cells.layer(layer, key, value).prompts
        rows, _, width, _ = key.shape
        lines.keys[self.first : self.first + rows, :, :width] = key
        lines.values[self.first : self.first + rows, :, :width] = value
        if look.softcap is None and look.sinks is None and not (look.window and look.window < width):
            shared = key.shape[1] != query.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=width > 1, scale=look.scale, enable_gqa=shared
            )
        parts = []
        for start in range(0, width, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, width)
            position = torch.arange(start, stop, device=key.device)[:, None]
            hidden = _hidden(position, torch.arange(stop, device=key.device), look.window)
            scores = look.scores(_by_key_head(query[:, :, start:stop], key), key[:, :, None, :stop])
            weights = look.weights(scores.masked_fill(hidden, -torch.inf)).to(value.dtype)
            parts.append((weights @ value[:, :, None, :stop]).flatten(1, 2))
        return torch.cat(parts, dim=2)


@dataclass
class Writing:
    """One more token of every answer."""

    cells: Cells
    device: torch.device
    layers_served: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> int:
        """How many prompts' lines are looked at."""
        return max(self.cells.prompt_of) + 1

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Cells to look at of a prompt and of an answer, the new one included."""
        return max(self.cells.prompt_lengths[: self.prompts]), max(self.cells.answer_lengths) + 1

    @cached_property
    def together(self) -> int:
        """The most answers to one prompt."""
        return max(self.cells.prompt_of.count(prompt) for prompt in set(self.cells.prompt_of))

    @cached_property
    def places(self) -> Tensor:
        """(B,) where an answer's query stands among `together` queries for each prompt."""
        seen = [0] * self.prompts
        places = []
        for prompt in self.cells.prompt_of:
            places.append(prompt * self.together + seen[prompt])
            seen[prompt] += 1
        return torch.tensor(places, device=self.device)

    @cached_property
    def written(self) -> Tensor:
        """(B,) filled cells of each answer: the index of its new one."""
        return torch.tensor(self.cells.answer_lengths, device=self.device)

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """(B,) of each answer's prompt."""
        return torch.tensor([self.cells.prompt_lengths[prompt] for prompt in self.cells.prompt_of], device=self.device)

    @cached_property
    def lines(self) -> Tensor:
        return torch.arange(len(self.cells.prompt_of), device=self.device)

    def mask(self, window: int | None) -> Tensor:
        """(B, 1, 1, Lp + La) float32: 0 where a key is seen, -inf where it is not."""
        if window not in self._masks:
            of_prompt, of_answer = self.longest
            lengths, written = self.prompt_lengths[:, None], self.written[:, None]
            prompt = torch.arange(of_prompt, device=self.device).expand(len(lengths), -1)
            answer = torch.arange(of_answer, device=self.device)
            position = torch.cat([prompt, lengths + answer], dim=1)
            hidden = torch.cat([prompt >= lengths, answer > written], dim=1)
            if window:
                hidden |= lengths + written - position >= window
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        kept = self.cells.layer(layer, key, value)
        answers, prompts = kept.answers, kept.prompts
        answers.keys[self.lines, :, self.written] = key[:, :, 0]
        answers.values[self.lines, :, self.written] = value[:, :, 0]
        of_prompt, of_answer = self.longest
        rows = len(self.lines)
        grouped = _by_key_head(query, key)[:, :, :, 0]  # (B, Hkv, Hq / Hkv, D)
        own = look.scores(grouped, answers.keys[:rows, :, :of_answer])
        prompt_keys = prompts.keys[: self.prompts, :, :of_prompt]
        shared = self._apart(look.scores(self._together(grouped), prompt_keys))
        weights = look.weights((torch.cat([shared, own], dim=-1) + self.mask(look.window))[:, :, :, None])[:, :, :, 0]
        weights = weights.to(value.dtype)
        out = weights[..., of_prompt:] @ answers.values[:rows, :, :of_answer]
        prompt_values = prompts.values[: self.prompts, :, :of_prompt]
        out = out + self._apart(self._together(weights[..., :of_prompt]) @ prompt_values)
        return out.flatten(1, 2)[:, :, None]

    def _together(self, x: Tensor) -> Tensor:
        """(B, Hkv, r, n) -> (P, Hkv, K * r, n): the answers to a prompt side by side, gaps filled with 0."""
        _, heads, each, width = x.shape
        wide = x.new_zeros(self.prompts * self.together, heads, each, width)
        wide[self.places] = x
        wide = wide.view(self.prompts, self.together, heads, each, width).transpose(1, 2)
        return wide.reshape(self.prompts, heads, self.together * each, width)

    def _apart(self, x: Tensor) -> Tensor:
        """The way back."""
        _, heads, rows, width = x.shape
        each = rows // self.together
        x = x.view(self.prompts, heads, self.together, each, width).transpose(1, 2)
        return x.reshape(self.prompts * self.together, heads, each, width)[self.places]


@dataclass(frozen=True)
class Look:
    """How a layer turns queries and keys into weights."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """float32 (or float64) scores; (..., q, D) and (..., k, D) -> (..., q, k)."""
        scores = (query * self.scale) @ key.mT
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the keys of (B, Hkv, Hq / Hkv, q, k), where a head may also look at its sink."""
        if self.sinks is None:
            return scores.softmax(dim=-1)
        sink = self.sinks.view(scores.shape[1], scores.shape[2], 1, 1).to(scores.dtype).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]


def cell_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    pass_over: Reading | Writing | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The signature of the transformers attention interface: query (B, Hq, T, D), key and value (B, Hkv, T, D).

    Returns:
        output (B, T, Hq, D), and None for the attention weights.

    Raises:
        ModelError: the layer does not say which one it is, or does not pass the engine's pass through.
    """
    number = getattr(module, "layer_idx", None)
    if pass_over is None or number is None:
        raise ModelError("This model's layers do not pass the engine's cells through.")
    pass_over.layers_served += 1
    look = Look(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    query = query.to(value.dtype)  # under autocast, rotary embedding leaves q and k in float32
    return pass_over.attend(number, query, key.to(value.dtype), value, look).transpose(1, 2), None


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """(B, Hq, T, D) -> (B, Hkv, Hq / Hkv, T, D)."""
    return query.unflatten(1, (key.shape[1], -1))


def _hidden(position: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(q, k) bool: the key comes later, or is out of the window."""
    hidden = keys > position
    return hidden | (position - keys >= window) if window else hidden


AttentionInterface.register(NAME, cell_attention)
