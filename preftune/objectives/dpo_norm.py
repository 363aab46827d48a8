"""Length-normalised DPO: the log-ratio of a response is divided by its number of tokens.

    L = -log σ( β·( r(y_w)/|y_w| - r(y_l)/|y_l| ) ),   r(y) = log π(y|x) - log π_ref(y|x)

Lambert et al. 2024 (Tülu 3), arXiv:2411.15124, Section 5; `sigmoid_norm` in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class DPONorm(Objective):
    """DPO per token. Logged rewards are what the loss compares, beta·r/|y|; TRL logs beta·r.

    Args:
        beta: > 0, per nat and token. 5 as in Tülu 3, far above DPO: it multiplies means, not sums.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2411.15124, Section 5"
    formula: ClassVar[str] = "-log σ(beta·(r_w/|y_w| - r_l/|y_l|)), r = log π(y|x) - log π_ref(y|x)"

    beta: float = 5.0

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.means - reference.means)  # (G, 2)
        return ObjectiveOutput(F.softplus(rewards[:, 1] - rewards[:, 0]), rewards.detach())

    def describe(self) -> str:
        return f"-log σ({self.beta:g}·(r_w/|y_w| - r_l/|y_l|))"
