"""DPO: direct preference optimisation against a reference model.

    r(y) = log π(y|x) - log π_ref(y|x),   z = β·(r(y_w) - r(y_l))
    L = -log σ(z)

Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. Label smoothing is cDPO (Mitchell 2023, "A note on DPO with noisy
preferences"), the robust form Chowdhury et al. 2024, arXiv:2403.00409, the hinge form SLiC's loss on the same z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class DPO(Objective):
    """Logistic loss on the difference of log-ratios, sums over tokens. Logged rewards are beta·r.

    Args:
        beta: strength of the pull to the reference, > 0, per nat.
        label_smoothing: probability e that a pair's labels are swapped, in [0, 0.5); the hinge does not use it.
        loss_type: `sigmoid`, -(1 - e)·log σ(z) - e·log σ(-z); `hinge`, max(0, 1 - z); `robust`, the unbiased
            [-(1 - e)·log σ(z) + e·log σ(-z)] / (1 - 2e), which can be negative.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2305.18290, Eq. 7"
    formula: ClassVar[str] = "-log σ(beta·(r_w - r_l)), r = log π(y|x) - log π_ref(y|x)"

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss_type: str = "sigmoid"

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(smoothing) and 0 <= smoothing < 0.5, "label_smoothing", "a number in [0, 0.5)", smoothing)
        known = ("sigmoid", "hinge", "robust")
        require(self.loss_type in known, "loss_type", "'sigmoid', 'hinge' or 'robust' for dpo", self.loss_type)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)  # (G, 2)
        z = rewards[:, 0] - rewards[:, 1]
        e = self.label_smoothing
        if self.loss_type == "hinge":
            losses = (1 - z).clamp(min=0)
        elif self.loss_type == "robust":
            losses = ((1 - e) * F.softplus(-z) - e * F.softplus(z)) / (1 - 2 * e)
        else:
            losses = (1 - e) * F.softplus(-z) + e * F.softplus(z)
        return ObjectiveOutput(losses, rewards.detach())

    def describe(self) -> str:
        z, e = f"{self.beta:g}·(r_w - r_l)", self.label_smoothing
        if self.loss_type == "hinge":
            return f"max(0, 1 - {z})"
        if not e:
            return f"-log σ({z})"
        if self.loss_type == "robust":
            return f"[-{1 - e:g}·log σ({z}) + {e:g}·log σ(-{z})] / {1 - 2 * e:g}"
        return f"-{1 - e:g}·log σ({z}) - {e:g}·log σ(-{z})"
