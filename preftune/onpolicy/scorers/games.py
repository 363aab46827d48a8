"""A score from comparisons: every answer meets every other in both orders, and its score is the mean of its wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

from preftune.onpolicy.scorers.base import Score, to_score


class Game(NamedTuple):
    """Answer `first`, shown first, against answer `second`."""

    first: int
    second: int


def all_games(answers: Sequence[str]) -> list[Game]:
    """All ordered pairs of different answers; equal ones are a draw without a game."""
    return [Game(i, j) for i, j in permutations(range(len(answers)), 2) if answers[i] != answers[j]]


def scores_of(answers: Sequence[str], played: Iterable[tuple[Game, float | None, str | None]]) -> list[Score]:
    """Mean wins in [0, 1] of each answer.

    Args:
        played: each game with how far its first answer won, 0 to 1, or None and why it has no result. Such a game is
            left out of the mean of both answers, and its reason kept.
    """
    wins: list[list[float]] = [[] for _ in answers]
    failures: list[str | None] = [None] * len(answers)
    for game, won, failure in played:
        if won is None:
            for place in game:
                failures[place] = failures[place] or f"answers {game.first + 1} and {game.second + 1}: {failure}"
            continue
        wins[game.first].append(won)
        wins[game.second].append(1 - won)
    for place, text in enumerate(answers):
        wins[place] += [0.5, 0.5] * (sum(text == other for other in answers) - 1)
    return [_mean(own, failure) for own, failure in zip(wins, failures, strict=True)]


def _mean(wins: Sequence[float], failure: str | None) -> Score:
    if not wins:
        return Score(None, failure or "there is no other answer to compare it with")
    return Score(to_score(sum(wins) / len(wins)).value, failure)
