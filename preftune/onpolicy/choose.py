"""Which two of a prompt's scored answers become the chosen and the rejected one.

The chosen answer always has the strictly higher score. Answers with the same text count once, with the mean of their
scores: a judge may have given two. Where several choices are equally good, the earlier answers of the row are taken.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from preftune.errors import RecipeError

Choose = Literal["best-worst", "length-controlled", "best-random"]


class NoPairError(Exception):
    """A prompt gives no pair; the message is the reason, the same for all prompts that are left out for it."""


@dataclass(frozen=True)
class Scored:
    """An answer and its score."""

    text: str
    score: float


@dataclass(frozen=True)
class Rule:
    """How pairs are chosen.

    Args:
        choose:
            best-worst: the highest score against the lowest.
            length-controlled: of the answers near the best and those near the worst, the two of closest length.
            best-random: the highest score against any lower one.
        min_margin: the least difference of the two scores.
        band: of length-controlled: what is near, as a share of the difference between the prompt's best and worst.
        seed: of best-random.

    Raises:
        RecipeError: a setting is out of range.
    """

    choose: Choose = "best-worst"
    min_margin: float = 0.0
    band: float = 0.25
    seed: int = 42

    def __post_init__(self) -> None:
        if self.choose not in get_args(Choose):
            raise RecipeError(f"'choose' is {self.choose!r}; expected one of {', '.join(get_args(Choose))}.")
        if not 0 <= self.min_margin < float("inf"):
            raise RecipeError(f"'min_margin' is {self.min_margin:g}; expected a number of at least 0.")
        if not 0 <= self.band <= 1:
            raise RecipeError(f"'band' is {self.band:g}; expected a share between 0 and 1.")

    def pair(self, answers: Sequence[str], scores: Sequence[float | None], name: str) -> tuple[Scored, Scored]:
        """The chosen and the rejected answer.

        Args:
            scores: None where the scorer failed.
            name: of the prompt; with the seed it decides what is random, whatever the order of the rows.

        Raises:
            NoPairError: there are none.
        """
        if len(answers) < 2:
            raise NoPairError("only one answer")
        if len(set(answers)) < 2:
            raise NoPairError("all answers identical")
        scored = _distinct(answers, scores)
        if len(scored) < 2:
            raise NoPairError("fewer than 2 different answers with a score")
        best, worst = max(scored, key=_score), min(scored, key=_score)
        if best.score == worst.score:
            raise NoPairError("all scores equal")
        if best.score - worst.score < self.min_margin:
            raise NoPairError("margin too small")
        if self.choose == "best-worst":
            return best, worst
        if self.choose == "best-random":
            lower = [other for other in scored if self._apart(best, other)]
            return best, random.Random(f"{self.seed} {name}").choice(lower)
        return self._closest(scored, best.score, worst.score)

    def _apart(self, one: Scored, other: Scored) -> bool:
        return one.score > other.score and one.score - other.score >= self.min_margin

    def _closest(self, scored: Sequence[Scored], highest: float, lowest: float) -> tuple[Scored, Scored]:
        """The best and the worst are among them, so there is a pair."""
        near = self.band * (highest - lowest)
        high = [one for one in scored if one.score >= highest - near]
        low = [one for one in scored if one.score <= lowest + near]
        pairs = [(one, other) for one in high for other in low if self._apart(one, other)]
        return min(pairs, key=lambda pair: (abs(len(pair[0].text) - len(pair[1].text)), pair[1].score - pair[0].score))


def _distinct(answers: Sequence[str], scores: Sequence[float | None]) -> list[Scored]:
    given: dict[str, list[float]] = {}
    for text, score in zip(answers, scores, strict=True):
        if score is not None:
            given.setdefault(text, []).append(score)
    return [Scored(text, sum(values) / len(values)) for text, values in given.items()]


def _score(scored: Scored) -> float:
    return scored.score
