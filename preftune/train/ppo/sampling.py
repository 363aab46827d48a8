"""Responses of the policy: prompts in, token ids out, sampled at a temperature from the whole distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from preftune.data.chat import read_chat_format
from preftune.errors import RecipeError
from preftune.model.value_head import base_of


@dataclass(frozen=True)
class Response:
    """Token ids, the ending one included; `ended` False where the length was reached first."""

    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Args:
        length: tokens at most.
        temperature: 0 takes the likeliest token.
        ends: the tokens that end a response.
        batch: prompts that run together.
        in_pieces: the weights lie in pieces over the processes. All of them sample as many batches, and one whose
            responses have ended takes part in the forward passes of the others.
    """

    length: int
    temperature: float
    ends: tuple[int, ...]
    batch: int
    in_pieces: bool = False


def ending_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, stop_token: str) -> tuple[int, ...]:
    """The ids that `stop_token` names: for eos the template's end of turn and those that the model itself names.

    Raises:
        RecipeError: the text is no token.
    """
    if stop_token != "eos":
        ids = tokenizer.encode(stop_token, add_special_tokens=False)
        if len(ids) != 1:
            raise RecipeError(
                f"'stop_token' must be eos or one token, but {stop_token!r} is {len(ids)} tokens of this tokenizer. "
                "Name one of its special tokens."
            )
        return tuple(ids)
    named = base_of(model).generation_config.eos_token_id
    known = [read_chat_format(tokenizer).end_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(end for end in known if end is not None))


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, device: torch.device | None = None
) -> list[Response]:
    """A response to each prompt, in their order; prompts of like length run together.

    `device`: where the model computes, if that is not where its weights are; a model `in_pieces` is a policy.

    The model's own settings of generation (top-k, penalties) are set aside: they would make the distribution that is
    sampled from another one than that of the log-probs.
    """
    base = base_of(model)
    own, was_training = base.generation_config, base.training
    base.generation_config = _settings(sampling)
    base.eval()
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: list[Response | None] = [None] * len(prompts)
    try:
        for start in range(0, len(order), sampling.batch):
            members = order[start : start + sampling.batch]
            rows = _generate(model, [prompts[number] for number in members], sampling, device or base.device)
            for number, row in zip(members, rows, strict=True):
                found[number] = _until_end(row, sampling)
    finally:
        base.generation_config = own
        base.train(was_training)
    return [response for response in found if response is not None]


def _settings(sampling: Sampling) -> GenerationConfig:
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=sampling.length,
        eos_token_id=list(sampling.ends),
        pad_token_id=sampling.ends[0],
        use_cache=True,
        **(drawn if sampling.temperature else {"do_sample": False}),
    )


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, device: torch.device
) -> list[list[int]]:
    width, fill = max(map(len, prompts)), sampling.ends[0]
    ids = torch.tensor([[fill] * (width - len(prompt)) + [*prompt] for prompt in prompts], device=device)
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)

    def generate(base: Any, _: Any = None) -> Tensor:
        return base.generate(input_ids=ids, attention_mask=real, synced_gpus=sampling.in_pieces)

    # in pieces from within the outermost module, whose own pieces an engine gathers when it is called
    found = model(batch=(), read=generate) if sampling.in_pieces else generate(base_of(model))
    return found[:, width:].tolist()


def _until_end(row: list[int], sampling: Sampling) -> Response:
    end = next((place for place, token in enumerate(row) if token in sampling.ends), None)
    if end is None or end >= sampling.length:
        return Response(row[: sampling.length], ended=False)
    return Response(row[: end + 1], ended=True)
