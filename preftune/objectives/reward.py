"""Reward model: the Bradley-Terry loss on the scores of a value head.

    L = mean over i better than j of  -log σ(s_i - s_j - m_ij) + c·(s_i + s_j)²
    m_ij = margin + margin_scale·(score_i - score_j)

Ouyang et al. 2022, arXiv:2203.02155, Eq. 1: the mean over all pairs of a prompt, so that a prompt with many responses
does not weigh more. Margin: Touvron et al. 2023, arXiv:2307.09288, Eq. 2. Centring: Eisenstein et al. 2023,
arXiv:2312.09244.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from preftune.objectives.base import Objective, Reads, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class Reward(Objective):
    """Trains a scalar head instead of log-probs: `policy.sums` are its scores. Logged rewards are the scores.

    Pairs are groups of two. The feedback's scores say which response is better, equal ones are not compared; where a
    group has none, its order does, best first. A group without a pair to compare costs 0.

    Args:
        center_rewards_coefficient: c, >= 0; above 0 keeps the scores around 0, which the loss leaves open otherwise.
        margin: by how much the better one has to lead, >= 0, in units of the head's score.
        margin_scale: added to the margin for each unit that the feedback's scores differ, >= 0.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.RANKED
    reads: ClassVar[Reads] = Reads.SCORES
    source: ClassVar[str] = "arXiv:2203.02155, Eq. 1; margin arXiv:2307.09288, Eq. 2; centring arXiv:2312.09244"
    formula: ClassVar[str] = (
        "mean over i better than j of -log σ(s_i - s_j - margin - margin_scale·(score_i - score_j)) "
        "+ center_rewards_coefficient·(s_i + s_j)²"
    )

    center_rewards_coefficient: float = 0.0
    margin: float = 0.0
    margin_scale: float = 0.0

    def __post_init__(self) -> None:
        for key in ("center_rewards_coefficient", "margin", "margin_scale"):
            value = getattr(self, key)
            require(is_number(value) and value >= 0, key, "a number of at least 0", value)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        s = torch.where(feedback.valid, policy.sums, 0.0)  # (G, K); a gap has the score of some other state
        first, second = s[:, :, None], s[:, None, :]  # (G, i, 1), (G, 1, j)
        known = feedback.scores.to(s.dtype)
        margins = self.margin + self.margin_scale * (known[:, :, None] - known[:, None, :])
        better = feedback.better()
        costs = F.softplus(second - first + margins) + self.center_rewards_coefficient * (first + second) ** 2
        losses = torch.where(better, costs, 0.0).sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1)
        return ObjectiveOutput(losses, s.detach())

    def describe(self) -> str:
        margin = f" - {self.margin:g}" if self.margin else ""
        scaled = f" - {self.margin_scale:g}·(score_i - score_j)" if self.margin_scale else ""
        c = self.center_rewards_coefficient
        return f"-log σ(s_i - s_j{margin}{scaled})" + (f" + {c:g}·(s_i + s_j)²" if c else "")
