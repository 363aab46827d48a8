"""AOT: alignment via optimal transport, a preference between distributions instead of pairs.

    paired:    u = log π(y_w|x) - log π(y_l|x),          v = the same under the reference
    unpaired:  u = log π(y_w|x) - log π_ref(y_w|x),      v = log π(y_l|x) - log π_ref(y_l|x)
    L = mean over k of -log σ( β·(u_(k) - v_(k)) ),      u_(k), v_(k) the k-th smallest

Melnyk et al. 2024, arXiv:2406.05882, Section 3, with the logistic cost and hard sorting: in one dimension, sorting is
the optimal transport. The quantiles are those of the whole optimizer step over all ranks; TRL (`aot`, `aot_unpaired`)
sorts within a micro-batch of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class AOT(Objective):
    """Makes the distribution of u dominate that of v, quantile by quantile. Logged rewards are beta·r.

    The loss at a quantile is returned with the group whose u it is.

    Args:
        beta: steepness of the cost, > 0, per nat.
        loss_type: `paired`, margins of the policy against margins of the reference; `unpaired`, log-ratios of the
            chosen against those of the rejected, whatever their prompts.
        label_smoothing: e in [0, 0.5): the cost is -(1 - e)·log σ(z) - e·log σ(-z). TRL's addition.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    group_local: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv:2406.05882, Section 3"
    formula: ClassVar[str] = (
        "-log σ(beta·(u_(k) - v_(k))), k-th smallest of the step, u = S_w - S_l, v = the same under the reference"
    )

    beta: float = 0.1
    loss_type: str = "paired"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(is_number(self.beta) and self.beta > 0, "beta", "a number above 0", self.beta)
        require(self.loss_type in ("paired", "unpaired"), "loss_type", "'paired' or 'unpaired'", self.loss_type)
        require(is_number(smoothing) and 0 <= smoothing < 0.5, "label_smoothing", "a number in [0, 0.5)", smoothing)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        ratios = policy.sums - reference.sums  # (G, 2)
        if self.loss_type == "paired":
            u, v = policy.chosen - policy.rejected, reference.chosen - reference.rejected
        else:
            u, v = ratios.unbind(dim=1)
        rank = u.argsort(stable=True).argsort()
        z = self.beta * (u - v.sort().values[rank])
        losses = (1 - self.label_smoothing) * F.softplus(-z) + self.label_smoothing * F.softplus(z)
        return ObjectiveOutput(losses, self.beta * ratios.detach())

    def describe(self) -> str:
        z, e = f"{self.beta:g}·(u_(k) - v_(k))", self.label_smoothing
        cost = f"-{1 - e:g}·log σ({z}) - {e:g}·log σ(-{z})" if e else f"-log σ({z})"
        if self.loss_type == "paired":
            return f"{cost}, u = S_w - S_l, v = R_w - R_l, sorted"
        return f"{cost}, u = r_w, v = r_l, sorted"
