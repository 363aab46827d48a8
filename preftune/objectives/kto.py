"""KTO: Kahneman-Tversky optimisation, from single responses that are called desirable or undesirable.

    r(y) = log π(y|x) - log π_ref(y|x),   z = max(0, mean of r(y') over mismatched prompts and responses)
    L = w_D·(1 - σ(β·(r - z)))  if desirable,   w_U·(1 - σ(β·(z - r)))  if not

Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8. z is taken over the probes of the whole step, without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from preftune.objectives.base import Baseline, Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class KTO(Objective):
    """Prospect-theoretic value of each response against the reference point z. Logged rewards are beta·r.

    A response is desirable where the first score of its group is above 0. Only the first response of a group enters
    the loss; the probe, if it is there at all, enters through `feedback.baseline` alone.

    Args:
        beta: risk aversion and pull to the reference, > 0, per nat.
        desirable_weight: w_D, > 0. Keep w_D·(number of desirable) / (w_U·(number of undesirable)) in [1, 4/3].
        undesirable_weight: w_U, > 0.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.UNPAIRED
    needs_reference: ClassVar[bool] = True
    baseline: ClassVar[Baseline] = Baseline.PROBES
    source: ClassVar[str] = "arXiv:2402.01306, Eq. 8"
    formula: ClassVar[str] = (
        "desirable_weight·(1 - σ(beta·(r - z))) or undesirable_weight·(1 - σ(beta·(z - r))), "
        "r = log π(y|x) - log π_ref(y|x), z = max(0, mean of r over mismatched responses)"
    )

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        for key in ("beta", "desirable_weight", "undesirable_weight"):
            value = getattr(self, key)
            require(is_number(value) and value > 0, key, "a number above 0", value)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        assert feedback.baseline is not None
        rewards = self.beta * (policy.sums - reference.sums)  # (G, 1), with the probe (G, 2)
        gain = rewards[:, 0] - self.beta * feedback.baseline.detach().clamp(min=0)
        losses = torch.where(
            feedback.scores[:, 0] > 0,
            self.desirable_weight * torch.sigmoid(-gain),  # 1 - σ(gain)
            self.undesirable_weight * torch.sigmoid(gain),
        )
        return ObjectiveOutput(losses, rewards.detach())

    def describe(self) -> str:
        wanted = f"{self.desirable_weight:g}·(1 - σ({self.beta:g}·(r - z))) if desirable"
        return f"{wanted}, {self.undesirable_weight:g}·(1 - σ({self.beta:g}·(z - r))) if not"
