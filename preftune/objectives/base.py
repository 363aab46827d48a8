"""What every objective is: a frozen dataclass from log-probs to one loss per group.

Its fields are the recipe keys, its `__call__` is the paper's line. It never averages, logs, gathers, moves devices or
reads configuration: the step (`preftune.train.step`) does that, the same way for every objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from preftune.errors import RecipeError
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


class Per(StrEnum):
    """What the sum of the losses over the whole optimizer step is divided by."""

    GROUP = "group"  # the number of groups
    TOKEN = "token"  # the number of response tokens


class Reads(StrEnum):
    """What `policy.sums` holds."""

    LOGPS = "logps"  # log-probs of the responses, summed over their tokens
    SCORES = "scores"  # the scalar that a value head gives to each response


class Baseline(StrEnum):
    """Where `feedback.baseline` comes from: one number for all groups of a step."""

    NONE = "none"  # it is None
    PROBES = "probes"  # mean of log π - log π_ref over the step's mismatched probes, before its first gradient
    RUNNING = "running"  # mean reward of all responses of the steps before this one; 0 in the first


@dataclass(frozen=True)
class Method(ABC):
    """What a recipe may name as its objective: a frozen dataclass whose fields are recipe keys.

    Class attributes:
        layout: the kind of groups it trains on.
        per: the divisor of the summed losses.
        needs_reference: whether log-probs under a reference model enter.
        group_local: whether the loss of a group depends on that group alone (given `feedback.baseline`), so that its
            gradient can be taken while its logits are still in memory.
        reads: what `policy.sums` holds.
        baseline: where `feedback.baseline` comes from.
        source: paper and equation.
        formula: the loss in one line.
        published_sft_weight: weight of the SFT term in the method's paper; the step adds the term, not the objective.
        published_sft_normalization: of that term, see `preftune.train.step.StepLoss`.

    The step makes an objective that is not `group_local` independent of the cut: it takes the log-probs of the whole
    step first, and its gradients by them in a second pass.
    """

    layout: ClassVar[Layout]
    per: ClassVar[Per] = Per.GROUP
    needs_reference: ClassVar[bool] = False
    group_local: ClassVar[bool] = True
    reads: ClassVar[Reads] = Reads.LOGPS
    baseline: ClassVar[Baseline] = Baseline.NONE
    source: ClassVar[str]
    formula: ClassVar[str]
    published_sft_weight: ClassVar[float] = 0.0
    published_sft_normalization: ClassVar[Literal["token", "sequence", "sum"]] = "token"

    @abstractmethod
    def describe(self) -> str:
        """The formula with this instance's numbers in it, for the run's log."""


@dataclass(frozen=True)
class Objective(Method):
    """The base of all objectives that train on given responses."""

    @abstractmethod
    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        """Losses (G,) and detached rewards (G, K) of G groups."""


def require(condition: bool, key: str, expected: str, found: object) -> None:
    """Raise RecipeError unless `condition`; called from `__post_init__`, so that no bad value reaches a formula."""
    if not condition:
        raise RecipeError(f"'{key}' must be {expected}, found {found!r}.")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
