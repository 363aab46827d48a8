"""RRHF: rank responses to align with human feedback, a hinge on average log-probs over all ranked pairs.

    A(y) = log π(y|x)/|y|
    L = Σ over i better than j of max(0, A(y_j) - A(y_i))

Yuan et al. 2023, arXiv:2304.05302, Eq. 2; its - λ·log π(y_best|x) is the SFT term that the step adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from preftune.objectives.base import Objective
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class RRHF(Objective):
    """Zero once the average log-probs are in the order of the scores; it has no keys. Logged rewards are A.

    Any number of responses, from two on. The scores say which is better, equal ones are not compared; where a group has
    none, its order does, best first. With sft_weight 1.0 on sums unless the recipe says otherwise: without it the model
    degenerates.
    """

    layout: ClassVar[Layout] = Layout.RANKED
    source: ClassVar[str] = "arXiv:2304.05302, Eq. 2"
    formula: ClassVar[str] = "Σ max(0, A_j - A_i) over i better than j, A = log π(y|x)/|y|"
    published_sft_weight: ClassVar[float] = 1.0
    published_sft_normalization: ClassVar[Literal["token", "sequence", "sum"]] = "sum"

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        means = policy.means  # (G, K)
        behind = means[:, None, :] - means[:, :, None]  # (G, i, j): A_j - A_i
        losses = torch.where(feedback.better(), behind.clamp(min=0), 0.0).sum(dim=(1, 2))
        return ObjectiveOutput(losses, means.detach())

    def describe(self) -> str:
        return "Σ max(0, A_j - A_i) over i better than j"
