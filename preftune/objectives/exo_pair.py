"""EXO on pairs: the reverse Kullback-Leibler divergence from the policy's preference to the smoothed label.

    z = β·(r(y_w) - r(y_l)),   r(y) = log π(y|x) - log π_ref(y|x),   q = σ(z)
    L = q·log(q / (1 - ε)) + (1 - q)·log((1 - q) / ε)

Ji et al. 2024, arXiv:2402.00856, Eq. 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class EXOPair(Objective):
    """Exact optimisation for two responses. Logged rewards are beta·r.

    Args:
        beta: strength of the pull to the reference, > 0, per nat.
        label_smoothing: the label's probability of being swapped, ε, in (0, 0.5): at 0 the divergence is infinite. The
            paper uses 1e-3.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2402.00856, Eq. 16"
    formula: ClassVar[str] = (
        "q·log(q/(1 - label_smoothing)) + (1 - q)·log((1 - q)/label_smoothing), q = σ(beta·(r_w - r_l))"
    )

    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(is_number(smoothing) and 0 < smoothing < 0.5, "label_smoothing", "a number in (0, 0.5)", smoothing)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        rewards = self.beta * (policy.sums - reference.sums)  # (G, 2)
        z = rewards[:, 0] - rewards[:, 1]
        right = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-self.label_smoothing))
        wrong = torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(self.label_smoothing))
        return ObjectiveOutput(right + wrong, rewards.detach())

    def describe(self) -> str:
        e = self.label_smoothing
        return f"q·log(q/{1 - e:g}) + (1 - q)·log((1 - q)/{e:g}), q = σ({self.beta:g}·(r_w - r_l))"
