"""BCO on pairs: a binary classifier whose logit is the implicit reward, with a reward shift.

    L = -log σ(β·r(y_w) - δ) - log σ(-(β·r(y_l) - δ)),   r(y) = log π(y|x) - log π_ref(y|x)

Jung et al. 2024, arXiv:2404.04656, Section 4. δ is the mean reward of all responses of the steps before, chosen and
rejected weighing the same; TRL's `bco_pair` leaves it out, which is δ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Baseline, Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class BCOPair(Objective):
    """Binary classification of chosen against rejected. Logged rewards are beta·r, without the shift.

    δ is `feedback.baseline`, without gradient, and 0 where there is none yet.

    Args:
        beta: strength of the pull to the reference, > 0, per nat; the paper trains with 0.01.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    baseline: ClassVar[Baseline] = Baseline.RUNNING
    source: ClassVar[str] = "arXiv:2404.04656, Section 4"
    formula: ClassVar[str] = (
        "-log σ(beta·r_w - δ) - log σ(δ - beta·r_l), r = log π(y|x) - log π_ref(y|x), δ = mean of beta·r before"
    )

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)
        shift = 0.0 if feedback.baseline is None else feedback.baseline.detach()
        chosen, rejected = (rewards - shift).unbind(dim=1)
        return ObjectiveOutput(F.softplus(-chosen) + F.softplus(rejected), rewards.detach())

    def describe(self) -> str:
        return f"-log σ({self.beta:g}·r_w - δ) - log σ(δ - {self.beta:g}·r_l)"
