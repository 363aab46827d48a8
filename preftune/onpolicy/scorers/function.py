"""Scores of a Python function `module:function` of prompts and responses, as PPO's `reward_function`; and of length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preftune.onpolicy.scorers.base import Score, to_score
from preftune.train.ppo.prompts import Prompt
from preftune.train.ppo.rewards import load_function
from preftune.types import Example


class FunctionScorer:
    """See `preftune.train.ppo.rewards` for what the function is called with.

    Raises:
        RecipeError: there is no such function.
    """

    def __init__(self, name: str) -> None:
        self.name, self.function = name, load_function(name)

    def settings(self) -> dict[str, Any]:
        return {"function": self.name}

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        pairs = [(example, text) for example in examples for text in example.responses]
        prompts = [Prompt([], example.prompt, example.origin) for example, _ in pairs]
        values = iter(self.function(prompts, [], [text for _, text in pairs]))
        return [[to_score(next(values)) for _ in example.responses] for example in examples]


class LengthScorer:
    """An answer's score is its length in characters: the baseline that a reward model should not be."""

    def settings(self) -> dict[str, Any]:
        return {"rule": "length"}

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        return [[Score(float(len(text))) for text in example.responses] for example in examples]
