"""SPPO with hard labels: self-play preference optimisation, a regression of each log-ratio to its win probability.

    L = ( r(y_w) - ½/β )² + ( r(y_l) + ½/β )²,   r(y) = log π(y|x) - log π_ref(y|x)

Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 with the probability of winning at 1 and 0; β = 1/η.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class SPPOHard(Objective):
    """Squared distance of both log-ratios to fixed targets. Logged rewards are beta·r.

    Args:
        beta: 1/η, > 0, per nat: the targets are ±0.5/beta nats. The paper trains with 0.001.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2405.00675, Eq. 4.7"
    formula: ClassVar[str] = "(r_w - 0.5/beta)² + (r_l + 0.5/beta)², r = log π(y|x) - log π_ref(y|x)"

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        ratios = policy.sums - reference.sums  # (G, 2)
        target = 0.5 / self.beta
        losses = (ratios[:, 0] - target) ** 2 + (ratios[:, 1] + target) ** 2
        return ObjectiveOutput(losses, self.beta * ratios.detach())

    def describe(self) -> str:
        target = f"{0.5 / self.beta:g}"
        return f"(r_w - {target})² + (r_l + {target})²"
