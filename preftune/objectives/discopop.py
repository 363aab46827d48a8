"""DiscoPOP: the log-ratio modulated loss that a language model discovered, a blend of logistic and exponential.

    z = β·(r(y_w) - r(y_l)),   r(y) = log π(y|x) - log π_ref(y|x),   m = σ(z/τ)
    L = (1 - m)·(-log σ(z)) + m·exp(-z)

Lu et al. 2024, arXiv:2406.08414, Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class DiscoPOP(Objective):
    """Not convex: it rises with z between -0.119 and 0.072 (at tau 0.05), so also at the start, z = 0.

    Logged rewards are beta·r. m·exp(-z) is computed as exp(log m - z), whose exponent is never above 0 for tau <= 1, so
    that nothing overflows and nothing has to be clamped; exp(-z) alone overflows at z = -89.

    Args:
        beta: strength of the pull to the reference, > 0, per nat; the paper trains with 0.05.
        tau: width of the blend, in (0, 1]; the paper's 0.05 unless told otherwise.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2406.08414, Eq. 5"
    formula: ClassVar[str] = "(1 - m)·(-log σ(z)) + m·e^(-z), z = beta·(r_w - r_l), m = σ(z/tau)"

    beta: float = 0.1
    tau: float = 0.05

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(self.tau) and 0 < self.tau <= 1, "tau", "a number in (0, 1]", self.tau)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)  # (G, 2)
        z = rewards[:, 0] - rewards[:, 1]
        logistic = torch.sigmoid(-z / self.tau) * F.softplus(-z)
        exponential = torch.exp(F.logsigmoid(z / self.tau) - z)
        return ObjectiveOutput(logistic + exponential, rewards.detach())

    def describe(self) -> str:
        return f"(1 - m)·(-log σ(z)) + m·e^(-z), z = {self.beta:g}·(r_w - r_l), m = σ(z/{self.tau:g})"
