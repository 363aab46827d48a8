"""What every objective is: a frozen dataclass from log-probs to one loss per group.

Its fields are the recipe keys, its `__call__` is the paper's line. It never averages, logs, gathers, moves devices or
reads configuration: the step (`preftune.train.step`) does that, the same way for every objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from preftune.errors import RecipeError
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


class Per(StrEnum):
    """What the sum of the losses over the whole optimizer step is divided by."""

    GROUP = "group"  # the number of groups
    TOKEN = "token"  # the number of response tokens


@dataclass(frozen=True)
class Objective(ABC):
    """The base of all objectives.

    Class attributes:
        layout: the kind of groups it trains on.
        per: the divisor of the summed losses.
        needs_reference: whether log-probs under a reference model enter.
        group_local: whether the loss of a group depends on that group alone (given `feedback.baseline`), so that its
            gradient can be taken while its logits are still in memory.
        source: paper and equation.
        formula: the loss in one line.
        published_sft_weight: weight of the SFT term in the method's paper; the step adds the term, not the objective.
    """

    layout: ClassVar[Layout]
    per: ClassVar[Per] = Per.GROUP
    needs_reference: ClassVar[bool] = False
    group_local: ClassVar[bool] = True
    source: ClassVar[str]
    formula: ClassVar[str]
    published_sft_weight: ClassVar[float] = 0.0

    @abstractmethod
    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        """Losses (G,) and detached rewards (G, K) of G groups."""

    @abstractmethod
    def describe(self) -> str:
        """The formula with this instance's numbers in it, for the run's log."""


def require(condition: bool, key: str, expected: str, found: object) -> None:
    """Raise RecipeError unless `condition`; called from `__post_init__`, so that no bad value reaches a formula."""
    if not condition:
        raise RecipeError(f"'{key}' must be {expected}, found {found!r}.")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
