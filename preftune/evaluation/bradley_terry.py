"""Ratings from battles: the Bradley-Terry model that Arena-Hard v0.1 reports.

    P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400))

fitted by maximum likelihood, a tie being half a win for each. With one opponent for all, a model's win rate is its
share of won battles, and no fit is needed (`arena_hard.py`); this is for battles of any models. Chiang et al. 2024,
arXiv:2403.04132; arena-hard-auto's show_result.py, whose logistic regression without penalty has the same maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from preftune.errors import DataError

SCALE, BASE, ANCHOR = 400.0, 10.0, 1000.0
SHARES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}  # of model_a
STEPS, TOLERANCE = 100, 1e-10


def ratings(battles: Sequence[Mapping[str, str]], anchor: str | None = None) -> dict[str, float]:
    """Model -> rating; `anchor` is at 1000, or without one the mean is.

    Args:
        battles: each with model_a, model_b and winner: model_a, model_b or tie.
        anchor: the model that the others are compared with.

    Raises:
        DataError: a battle is not such, or won and lost battles do not connect all models, so that no finite ratings
            are most likely.
    """
    models = sorted({battle[side] for battle in battles for side in ("model_a", "model_b")})
    if anchor is not None and anchor not in models:
        raise DataError(f"battles: the anchor {anchor!r} is in none of {len(battles)}; found {', '.join(models[:6])}.")
    won = won_matrix(battles, models)
    _check_connected(won, models)
    found = _maximum(won) * SCALE / np.log(BASE)
    shift = ANCHOR - (found[models.index(anchor)] if anchor else found.mean())
    return dict(zip(models, (found + shift).tolist(), strict=True))


def won_matrix(battles: Sequence[Mapping[str, str]], models: Sequence[str]) -> np.ndarray:
    """(M, M) how often the row's model beat the column's, ties counting half."""
    place = {model: number for number, model in enumerate(models)}
    won = np.zeros((len(models), len(models)))
    for number, battle in enumerate(battles, 1):
        if battle["winner"] not in SHARES:
            raise DataError(f"battles row {number}: 'winner' is {battle['winner']!r}, expected {', '.join(SHARES)}.")
        a, b = place[battle["model_a"]], place[battle["model_b"]]
        if a == b:
            raise DataError(f"battles row {number}: {battle['model_a']!r} meets itself. Delete the row.")
        won[a, b] += SHARES[battle["winner"]]
        won[b, a] += 1 - SHARES[battle["winner"]]
    return won


def win_percentage(rating: float, other: float) -> float:
    """How often a model of this rating beats the other, in percent."""
    return 100 / (1 + BASE ** ((other - rating) / SCALE))


def _maximum(won: np.ndarray) -> np.ndarray:
    """(M,) natural log strengths with mean 0, by Newton's method."""
    played = won + won.T
    strengths = np.zeros(len(won))
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
        slope = won.sum(axis=1) - (played * expected).sum(axis=1)
        curve = played * expected * (1 - expected)
        hessian = np.diag(curve.sum(axis=1)) - curve
        step = np.linalg.pinv(hessian, hermitian=True) @ slope  # the mean is free, hence the pseudo-inverse
        strengths += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < TOLERANCE:
            break
    return strengths - strengths.mean()


def _check_connected(won: np.ndarray, models: Sequence[str]) -> None:
    """The maximum is finite if and only if every model can be reached from every other by won battles (Ford 1957)."""
    for reached_by in (won, won.T):
        seen, open_ends = {0}, [0]
        while open_ends:
            for model in np.flatnonzero(reached_by[open_ends.pop()] > 0).tolist():
                if model not in seen:
                    seen.add(model)
                    open_ends.append(model)
        if len(seen) < len(models):
            apart = next(model for number, model in enumerate(models) if number not in seen)
            raise DataError(
                f"battles: {models[0]!r} and {apart!r} are not connected by wins in both directions, so their "
                "ratings are infinitely apart. Add battles, or leave out the models that won or lost all of theirs."
            )
