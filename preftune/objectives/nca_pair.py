"""NCA on pairs: noise contrastive alignment, which holds up the chosen log-prob itself, not the difference alone.

    L = -log σ(β·r(y_w)) - ½·log σ(-β·r(y_w)) - ½·log σ(-β·r(y_l)),   r(y) = log π(y|x) - log π_ref(y|x)

Chen et al. 2024, arXiv:2402.05369, Section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class NCAPair(Objective):
    """Noise contrastive estimation with two responses. Logged rewards are beta·r.

    Args:
        beta: strength of the pull to the reference, > 0, per nat; the paper trains with 0.01.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2402.05369, Section 4.1"
    formula: ClassVar[str] = (
        "-log σ(beta·r_w) - 0.5·log σ(-beta·r_w) - 0.5·log σ(-beta·r_l), r = log π(y|x) - log π_ref(y|x)"
    )

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)
        chosen, rejected = rewards.unbind(dim=1)
        losses = F.softplus(-chosen) + 0.5 * F.softplus(chosen) + 0.5 * F.softplus(rejected)
        return ObjectiveOutput(losses, rewards.detach())

    def describe(self) -> str:
        b = f"{self.beta:g}"
        return f"-log σ({b}·r_w) - 0.5·log σ(-{b}·r_w) - 0.5·log σ(-{b}·r_l)"
