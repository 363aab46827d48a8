"""R-DPO: DPO with a length term that takes the reward for mere length out of the preference.

    L = -log σ( β·(r(y_w) - r(y_l)) + α·(|y_w| - |y_l|) ),   r(y) = log π(y|x) - log π_ref(y|x)

Park et al. 2024, arXiv:2403.19159. The sign is plus: the length of a longer chosen answer explains part of the
preference, so that less is left for the policy to learn; with equal log-ratios its loss is below log 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class RDPO(Objective):
    """Length-regularised DPO. Logged rewards are beta·r, without the length term.

    Args:
        beta: strength of the pull to the reference, > 0, per nat.
        alpha: penalty on length, >= 0, per token; 0 is DPO.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2403.19159"
    formula: ClassVar[str] = "-log σ(beta·(r_w - r_l) + alpha·(|y_w| - |y_l|)), r = log π(y|x) - log π_ref(y|x)"

    beta: float = 0.1
    alpha: float = 0.05

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(self.alpha) and self.alpha >= 0, "alpha", "a number of at least 0", self.alpha)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)  # (G, 2)
        longer = (policy.lengths[:, 0] - policy.lengths[:, 1]).to(rewards.dtype)  # tokens
        z = rewards[:, 0] - rewards[:, 1] + self.alpha * longer
        return ObjectiveOutput(F.softplus(-z), rewards.detach())

    def describe(self) -> str:
        return f"-log σ({self.beta:g}·(r_w - r_l) + {self.alpha:g}·(|y_w| - |y_l|))"
