"""SimPO: length-normalised, reference-free preference loss.

    z = β·( log π(y_w|x)/|y_w| - log π(y_l|x)/|y_l| ) - γ,   γ = gamma_beta_ratio · β
    L = -log σ(z)

Meng et al. 2024, arXiv:2405.14734, Eq. 6. Label smoothing and the hinge form follow the paper's repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class SimPO(Objective):
    """Margin-based preference loss on average log-probabilities.

    Args:
        beta: reward scale, > 0, no unit. The paper uses 2 to 10, far above DPO.
        gamma_beta_ratio: target margin divided by beta, >= 0, usually in [0, 1]; nats per token.
        label_smoothing: probability that a pair's labels are swapped, in [0, 0.5); used by the sigmoid form alone.
        loss_type: `sigmoid`, -log σ(z), or `hinge`, max(0, 1 - z).

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    source: ClassVar[str] = "arXiv:2405.14734, Eq. 6"
    formula: ClassVar[str] = "-log σ(beta·(A_w - A_l) - beta·gamma_beta_ratio), A = log π(y|x)/|y|"

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    label_smoothing: float = 0.0
    loss_type: str = "sigmoid"

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        ratio, smoothing = self.gamma_beta_ratio, self.label_smoothing
        require(is_number(ratio) and ratio >= 0, "gamma_beta_ratio", "a number of at least 0", ratio)
        require(is_number(smoothing) and 0 <= smoothing < 0.5, "label_smoothing", "a number in [0, 0.5)", smoothing)
        require(self.loss_type in ("sigmoid", "hinge"), "loss_type", "'sigmoid' or 'hinge' for simpo", self.loss_type)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        chosen, rejected = policy.means.unbind(dim=1)  # (G,), (G,)
        z = self.beta * (chosen - rejected - self.gamma_beta_ratio)
        if self.loss_type == "hinge":
            losses = (1 - z).clamp(min=0)
        else:
            losses = (1 - self.label_smoothing) * F.softplus(-z) + self.label_smoothing * F.softplus(z)
        return ObjectiveOutput(losses, rewards=self.beta * policy.means.detach())

    def describe(self) -> str:
        z = f"{self.beta:g}·(A_w - A_l - {self.gamma_beta_ratio:g})"
        if self.loss_type == "hinge":
            return f"max(0, 1 - {z})"
        if self.label_smoothing:
            return f"-{1 - self.label_smoothing:g}·log σ({z}) - {self.label_smoothing:g}·log σ(-{z})"
        return f"-log σ({z})"
