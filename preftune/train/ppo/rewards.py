"""What a response is worth: the score of a reward model, or the number that a Python function gives.

A function is named by `reward_function: module:function`. It is called with the prompts, each a list of
{role, content}, and the responses as texts without special tokens, and returns one number for each:

    def shorter(prompts, responses):
        return [-len(text) / 100 for text in responses]
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from preftune.data.pack import pack
from preftune.errors import ModelError, RecipeError, TrainingError
from preftune.model.load import one_line
from preftune.train.ppo.prompts import Prompt
from preftune.types import TokenizedGroup


class Reward(Protocol):
    """Scores of responses, in their order; `groups` are the same as token ids, one response each."""

    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[TokenizedGroup], texts: Sequence[str]
    ) -> list[float]: ...


@dataclass(frozen=True)
class ModelReward:
    """A reward model (`preftune.model.heads.to_scorer`), which reads the last token of each response."""

    model: Any
    batch: int  # sequences of a pass

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[TokenizedGroup], texts: Sequence[str]
    ) -> list[float]:
        pad, found = self.model.config.get_text_config().pad_token_id, []
        for start in range(0, len(groups), self.batch):
            members = [_as_read(group, pad) for group in groups[start : start + self.batch]]
            batch = pack(members, feed_last=True).to(self.model.device)
            found += self.model(batch=batch).sums[:, 0].tolist()
        for value, group in zip(found, groups, strict=True):
            if not math.isfinite(value):
                raise TrainingError(f"{group.origin}: the reward model gives {value}. Check its weights.")
        return found


def _as_read(group: TokenizedGroup, pad: int | None) -> TokenizedGroup:
    """Up to the token that the model reads: some were trained with the end of a turn as their padding."""
    ids = group.response_ids[0]
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return group if end == len(ids) else replace(group, response_ids=[ids[:end]])


@dataclass(frozen=True)
class FunctionReward:
    """A Python function of prompts and responses; see the module."""

    name: str
    function: Callable[..., Any]

    def __call__(
        self, prompts: Sequence[Prompt], groups: Sequence[TokenizedGroup], texts: Sequence[str]
    ) -> list[float]:
        try:
            given = self.function([prompt.to_chat() for prompt in prompts], list(texts))
        except Exception as cause:  # whatever a user's function raises
            raise TrainingError(f"reward_function {self.name} failed: {one_line(cause)}.") from cause
        values = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(values, (list, tuple)) or len(values) != len(texts):
            found = f"{len(values)} of them" if isinstance(values, (list, tuple)) else type(values).__name__
            raise TrainingError(
                f"reward_function {self.name} must return a list of {len(texts)} numbers, one a response, "
                f"found {found}."
            )
        return [self._number(value, prompt) for value, prompt in zip(values, prompts, strict=True)]

    def _number(self, value: object, prompt: Prompt) -> float:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TrainingError(
                f"{prompt.origin}: reward_function {self.name} gives {value!r}, expected a finite number."
            )
        return float(value)


def load_function(name: str) -> FunctionReward:
    """The function of `module:function`; the module may be a file in the working directory.

    Raises:
        RecipeError: the module cannot be imported, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:  # whatever a user's module raises
        raise RecipeError(
            f"'reward_function' {name}: the module '{module_name}' cannot be imported ({one_line(cause)}). It must be "
            "a file in the working directory, or installed."
        ) from cause
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RecipeError(f"'reward_function' {name}: {module_name} has no function '{attribute}'. Correct the name.")
    return FunctionReward(name, function)


def check_vocabulary(name: str, theirs: dict[str, int], ours: dict[str, int]) -> None:
    """The reward model and the value model read the policy's token ids.

    Raises:
        ModelError: they would be other tokens there.
    """
    other = next((token for token, number in ours.items() if theirs.get(token) != number), None)
    if other is not None:
        raise ModelError(
            f"The reward model '{name}' has another vocabulary than the policy (token {other!r} is {theirs.get(other)} "
            f"there, {ours[other]} here), and the value model reads the policy's tokens. Train one on the policy's "
            "model, or score with a reward_function."
        )
