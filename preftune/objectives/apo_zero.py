"""APO-zero: anchored preference optimisation for chosen responses that are better than the model's own.

    L = 1 - σ(β·r(y_w)) + σ(β·r(y_l)),   r(y) = log π(y|x) - log π_ref(y|x)

D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class APOZero(Objective):
    """Raises the chosen log-prob and lowers the rejected one, each on its own. Logged rewards are beta·r.

    Args:
        beta: strength of the pull to the reference, > 0, per nat.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2408.06266, Eq. 7"
    formula: ClassVar[str] = "1 - σ(beta·r_w) + σ(beta·r_l), r = log π(y|x) - log π_ref(y|x)"

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)
        chosen, rejected = rewards.unbind(dim=1)
        return ObjectiveOutput(torch.sigmoid(-chosen) + torch.sigmoid(rejected), rewards.detach())

    def describe(self) -> str:
        return f"1 - σ({self.beta:g}·r_w) + σ({self.beta:g}·r_l)"
