"""Scores of a reward model of ours or of any sequence classifier with one label; a prompt is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preftune.model.place import find_model
from preftune.onpolicy.local import weights_mark
from preftune.onpolicy.scorers.base import Score, to_score
from preftune.serve.reward import BATCH_TOKENS, open_reward_model, score_examples
from preftune.types import Example


class RewardModelScorer:
    """See `preftune.serve.reward`.

    Raises:
        ModelError: there is no reward model.
    """

    def __init__(self, name: str, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None) -> None:
        self.name, self.batch_tokens, self.max_length = name, batch_tokens, max_length
        self.reward = open_reward_model(name)

    def settings(self) -> dict[str, Any]:
        marks = {
            "reward_model": self.name,
            "weights": weights_mark(find_model(self.name)),
            "max_length": self.max_length,
        }
        return marks | ({"system": self.reward.system} if self.reward.system else {})

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        found = score_examples(self.reward, examples, batch_tokens=self.batch_tokens, max_length=self.max_length)
        return [[to_score(value) for value in values] for values in found.values]
