"""IPO: identity preference optimisation, a squared distance to a fixed margin of log-ratios.

    L = ( r(y_w) - r(y_l) - 1/(2τ) )²,   r(y) = log π(y|x) - log π_ref(y|x)

Azar et al. 2023, arXiv:2310.12036, Eq. 17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from preftune.objectives.base import Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


@dataclass(frozen=True)
class IPO(Objective):
    """Regression of the difference of log-ratios to 1/(2 tau). Logged rewards are tau·r, or tau·r/|y| if normalised.

    Args:
        tau: regularisation, > 0: the target margin is 1/(2 tau) nats. A recipe may call it beta.
        normalize: `none`, r is the sum over tokens, as in the paper; `length`, r is divided by the number of tokens,
            as TRL does.

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2310.12036, Eq. 17"
    formula: ClassVar[str] = "(r_w - r_l - 1/(2·tau))², r = log π(y|x) - log π_ref(y|x)"

    tau: float = 0.1
    normalize: str = "none"

    def __post_init__(self) -> None:
        require(is_number(self.tau) and self.tau > 0, "tau", "a number above 0", self.tau)
        require(self.normalize in ("none", "length"), "normalize", "'none' or 'length'", self.normalize)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        assert reference is not None
        by_length = self.normalize == "length"
        ratios = policy.means - reference.means if by_length else policy.sums - reference.sums  # (G, 2)
        losses = (ratios[:, 0] - ratios[:, 1] - 1 / (2 * self.tau)) ** 2
        return ObjectiveOutput(losses, self.tau * ratios.detach())

    def describe(self) -> str:
        margin = "r_w/|y_w| - r_l/|y_l|" if self.normalize == "length" else "r_w - r_l"
        return f"({margin} - {1 / (2 * self.tau):g})²"
