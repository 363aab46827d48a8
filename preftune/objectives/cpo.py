"""CPO: contrastive preference optimisation, DPO without a reference model.

    z = β·( log π(y_w|x) - log π(y_l|x) )
    L = -log σ(z)

Xu et al. 2024, arXiv:2401.08417. Its likelihood term is the SFT term that the step adds. Label smoothing and the hinge
form as in DPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class CPO(Objective):
    """Logistic loss on the difference of log-probs, sums over tokens. Logged rewards are beta·log π(y|x).

    With sft_weight 1.0 per token unless the recipe says otherwise: the likelihood of the chosen response stands in for
    the reference.

    Args:
        beta: reward scale, > 0, per nat.
        label_smoothing: probability e that a pair's labels are swapped, in [0, 0.5); used by the sigmoid form alone.
        loss_type: `sigmoid`, -(1 - e)·log σ(z) - e·log σ(-z), or `hinge`, max(0, 1 - z).

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    source: ClassVar[str] = "arXiv:2401.08417"
    formula: ClassVar[str] = "-log σ(beta·(S_w - S_l)), S = log π(y|x)"
    published_sft_weight: ClassVar[float] = 1.0

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss_type: str = "sigmoid"

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(smoothing) and 0 <= smoothing < 0.5, "label_smoothing", "a number in [0, 0.5)", smoothing)
        require(self.loss_type in ("sigmoid", "hinge"), "loss_type", "'sigmoid' or 'hinge' for cpo", self.loss_type)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        z = self.beta * (policy.chosen - policy.rejected)
        if self.loss_type == "hinge":
            losses = (1 - z).clamp(min=0)
        else:
            losses = (1 - self.label_smoothing) * F.softplus(-z) + self.label_smoothing * F.softplus(z)
        return ObjectiveOutput(losses, self.beta * policy.sums.detach())

    def describe(self) -> str:
        z, e = f"{self.beta:g}·(S_w - S_l)", self.label_smoothing
        if self.loss_type == "hinge":
            return f"max(0, 1 - {z})"
        return f"-{1 - e:g}·log σ({z}) - {e:g}·log σ(-{z})" if e else f"-log σ({z})"
