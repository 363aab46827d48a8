"""AlphaPO: SimPO with the reward's shape as a parameter.

    A(y) = log π(y|x)/|y|,   reward(y) = β·(1 - exp(-α·A(y)))/α
    L = -log σ( reward(y_w) - reward(y_l) - γ ),   γ = gamma_beta_ratio · β

Gupta et al. 2025, arXiv:2501.03884. α → 0 is SimPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps

# exp(30) = 1e13: its square still fits float32, so that a gradient norm stays finite. At alpha 0.25 this is reached at
# -120 nats per token, ten times worse than a uniform guess from any vocabulary.
_LARGEST_EXPONENT = 30.0


@dataclass(frozen=True)
class AlphaPO(Objective):
    """Margin-based loss on reshaped average log-probs. Logged rewards are reward(y), without the margin.

    The exponent -alpha·A is held at 30, where a response no longer moves, so that no log-prob overflows.

    Args:
        beta: reward scale, > 0, no unit.
        gamma_beta_ratio: target margin divided by beta, >= 0.
        alpha: shape, per nat and token: above 0 damps the fall of the chosen log-prob, 0 is SimPO. The defaults of all
            three are those of the paper's Table 3 for Mistral-7B-Instruct.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    source: ClassVar[str] = "arXiv:2501.03884, Section 3"
    formula: ClassVar[str] = (
        "-log σ(beta·(e^(-alpha·A_l) - e^(-alpha·A_w))/alpha - beta·gamma_beta_ratio), A = log π(y|x)/|y|"
    )

    beta: float = 2.5
    gamma_beta_ratio: float = 0.1
    alpha: float = 0.25

    def __post_init__(self) -> None:
        ratio = self.gamma_beta_ratio
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(ratio) and ratio >= 0, "gamma_beta_ratio", "a number of at least 0", ratio)
        require(is_number(self.alpha), "alpha", "a number", self.alpha)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        shaped = self._shape(policy.means)  # (G, 2)
        margin = shaped[:, 0] - shaped[:, 1] - self.gamma_beta_ratio
        return ObjectiveOutput(F.softplus(-self.beta * margin), self.beta * shaped.detach())

    def _shape(self, means: Tensor) -> Tensor:
        if self.alpha == 0:
            return means
        return -torch.expm1((-self.alpha * means).clamp(max=_LARGEST_EXPONENT)) / self.alpha

    def describe(self) -> str:
        if self.alpha == 0:
            return f"-log σ({self.beta:g}·(A_w - A_l - {self.gamma_beta_ratio:g}))"
        a = f"{self.alpha:g}"
        return f"-log σ({self.beta:g}·((e^(-{a}·A_l) - e^(-{a}·A_w))/{a} - {self.gamma_beta_ratio:g}))"
