"""Trajectories -> which pairs never separate, flip, or separate by length alone.

A pair is right at a visit where its margin is above 0. By its visits it is in exactly one of four classes:

    never    right at none
    lost     right at some, wrong at the last
    gained   wrong at the first, right at the last
    right    right at the first and at the last

Flipped are `lost` and `gained`. Length: the margins m at the last visits are fitted by least squares to the differences
in length l (tokens of chosen minus rejected), m = a + b·l. A pair separates by length alone where it is right, and
m - b·l, what is left of its margin with two responses of the same length, is not above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.autopsy.trajectories import Trajectory

NEVER, LOST, GAINED, RIGHT = "never", "lost", "gained", "right"


@dataclass(frozen=True)
class LengthFit:
    """slope: margin for each token that the chosen response is longer; explained: R², the share of the variance."""

    slope: float
    explained: float

    def without_length(self, pair: Trajectory) -> float:
        return pair.last - self.slope * pair.longer

    def alone(self, pair: Trajectory) -> bool:
        """Whether the pair separates by length alone."""
        return pair.last > 0 and not self.without_length(pair) > 0


def kind(pair: Trajectory) -> str:
    """The class of a pair."""
    right = [margin > 0 for margin in pair.margins]
    if right[-1]:
        return RIGHT if right[0] else GAINED
    return LOST if any(right) else NEVER


def fit_length(pairs: Sequence[Trajectory]) -> LengthFit:
    """Over all pairs whose last margin is finite; no slope where lengths or margins do not differ."""
    known = [pair for pair in pairs if math.isfinite(pair.last)]
    margins = np.array([pair.last for pair in known])
    longer = np.array([pair.longer for pair in known], dtype=float)
    if len(known) < 3 or not longer.std() or not margins.std():
        return LengthFit(0.0, 0.0)
    together = float(np.cov(longer, margins, bias=True)[0, 1])
    return LengthFit(together / float(longer.var()), together**2 / float(longer.var() * margins.var()))
