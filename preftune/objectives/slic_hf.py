"""SLiC-HF: sequence likelihood calibration with human feedback, a hinge on the difference of log-probs.

    L = max(0, δ - log π(y_w|x) + log π(y_l|x))

Zhao et al. 2023, arXiv:2305.10425. Its likelihood term, - λ·log π of the response to imitate, is the SFT term that the
step adds, on the chosen response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class SLiCHF(Objective):
    """Rank calibration on sums over tokens. Logged rewards are log π(y|x).

    With sft_weight 0.1 on sums unless the recipe says otherwise; 0.1 is the smallest of 0.1, 0.5, 1, 10 that the SimPO
    paper searches.

    Args:
        delta: margin, > 0, nats.

    Raises:
        RecipeError: delta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    source: ClassVar[str] = "arXiv:2305.10425"
    formula: ClassVar[str] = "max(0, delta - S_w + S_l), S = log π(y|x)"
    published_sft_weight: ClassVar[float] = 0.1
    published_sft_normalization: ClassVar[Literal["token", "sequence", "sum"]] = "sum"

    delta: float = 1.0

    def __post_init__(self) -> None:
        require(is_number(self.delta) and self.delta > 0, "delta", "a number above 0", self.delta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        losses = (self.delta - policy.chosen + policy.rejected).clamp(min=0)
        return ObjectiveOutput(losses, policy.sums.detach())

    def describe(self) -> str:
        return f"max(0, {self.delta:g} - S_w + S_l)"
