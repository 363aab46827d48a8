"""ORPO: odds ratio preference optimisation, likelihood and preference in one reference-free loss.

    A(y) = log π(y|x)/|y|,   log odds(y) = A(y) - log(1 - exp A(y))
    L = -A(y_w) - β·log σ( log odds(y_w) - log odds(y_l) )

Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7. The likelihood part is the objective's own, a mean over the response's
tokens; TRL takes it over the prompt as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps

# log(1 - exp(0)) is -inf: an answer that is certain to the last digit of float32 counts as this certain.
_MOST_CERTAIN = -1e-6


@dataclass(frozen=True)
class ORPO(Objective):
    """Likelihood of the chosen response, and the logistic loss on the log odds ratio. Logged rewards are beta·A.

    Logged beside them: `log_odds`, the argument of σ. A is held at -1e-6 at most inside the odds.

    Args:
        beta: weight of the odds-ratio part, > 0, no unit; the paper's lambda.

    Raises:
        RecipeError: beta is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    source: ClassVar[str] = "arXiv:2403.07691, Eq. 7"
    formula: ClassVar[str] = "-A_w - beta·log σ((A_w - A_l) - (log(1 - e^A_w) - log(1 - e^A_l))), A = log π(y|x)/|y|"

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        chosen, rejected = policy.means.unbind(dim=1)
        log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        losses = -chosen + self.beta * F.softplus(-log_odds)
        return ObjectiveOutput(losses, self.beta * policy.means.detach(), {"log_odds": log_odds.detach()})

    def describe(self) -> str:
        return f"-A_w - {self.beta:g}·log σ(log odds_w - log odds_l)"


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a <= 0, accurate at both ends: by expm1 near 0, by log1p far from it."""
    a = a.clamp(max=_MOST_CERTAIN)
    return torch.where(a > -math.log(2), torch.log(-torch.expm1(a)), torch.log1p(-torch.exp(a)))
