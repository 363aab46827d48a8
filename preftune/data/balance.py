"""Class balance of unpaired rows, as KTO wants it.

    1 <= w_D n_D / (w_U n_U) <= 4/3

with n desirable (D) and undesirable (U) rows and their weights. Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, log10

from preftune.errors import DataError
from preftune.types import Example, TokenizedGroup

LOWEST, HIGHEST = Fraction(1), Fraction(4, 3)
ROUNDING = 1e-9  # relative: weights are decimal fractions, as in 1.1 * 10 / 11


@dataclass(frozen=True)
class Balance:
    """How many rows of each class there are, and how much they weigh. Print it for one line with the numbers."""

    desirable: int
    undesirable: int
    desirable_weight: float
    undesirable_weight: float

    @property
    def ratio(self) -> float:
        """Weight of all desirable rows over that of all undesirable ones; infinite where these weigh nothing."""
        weight = self.undesirable_weight * self.undesirable
        return self.desirable_weight * self.desirable / weight if weight else float("inf")

    @property
    def balanced(self) -> bool:
        return LOWEST * (1 - ROUNDING) <= self.ratio <= HIGHEST * (1 + ROUNDING)

    @property
    def proposal(self) -> tuple[str, float] | None:
        """The recipe key and the value that balance the classes; None where they are.

        Of the two weights the one that is too small is raised, to the near end of the interval, in three digits.
        """
        if self.balanced:
            return None
        desirable = Fraction(self.desirable_weight) * self.desirable
        undesirable = Fraction(self.undesirable_weight) * self.undesirable
        if self.ratio < 1:
            return "desirable_weight", _rounded_up(LOWEST * undesirable / self.desirable)
        return "undesirable_weight", _rounded_up(desirable / HIGHEST / self.undesirable)

    def __str__(self) -> str:
        line = (
            f"{self.desirable} desirable rows (weight {self.desirable_weight:g}), {self.undesirable} undesirable "
            f"(weight {self.undesirable_weight:g}): ratio {self.ratio:.3g}"
        )
        if self.proposal is None:
            return f"{line}, within 1 to 4/3"
        key, value = self.proposal
        return f"{line}, outside 1 to 4/3; set {key}: {value:g}"


def class_balance(
    rows: Sequence[Example] | Sequence[TokenizedGroup], desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Balance:
    """Count the classes of unpaired examples or groups.

    Args:
        rows: of one response each, with scores (1,) or (0,), as `load_preferences(..., layout="unpaired")` gives them.
        desirable_weight, undesirable_weight: the recipe's, at least 0 and not both 0.

    Raises:
        DataError: a row has no label, or all rows are of one class.
    """
    for row in rows:
        if len(row.scores) != 1:
            raise DataError(f"{row.origin}: the row has no label; expected one. Load it with layout 'unpaired'.")
    desirable = sum(row.scores[0] > 0 for row in rows)
    undesirable = len(rows) - desirable
    if not desirable or not undesirable:
        raise DataError(_one_class(rows, "desirable" if desirable else "undesirable"))
    return Balance(desirable, undesirable, desirable_weight, undesirable_weight)


def _one_class(rows: Sequence[Example] | Sequence[TokenizedGroup], name: str) -> str:
    if not rows:
        return "there are no rows to count; KTO needs desirable and undesirable ones. Check the dataset."
    where = f"{rows[0].origin.dataset}[{rows[0].origin.split}]"
    wanted = "label false" if name == "desirable" else "label true"
    return (
        f"{where}: all {len(rows)} rows are {name}, and KTO needs both classes. Add rows with {wanted}, "
        "or take an objective for pairs or single answers."
    )


def _rounded_up(value: Fraction, digits: int = 3) -> float:
    unit = Fraction(10) ** (floor(log10(value)) + 1 - digits)
    return float(ceil(value / unit) * unit)
