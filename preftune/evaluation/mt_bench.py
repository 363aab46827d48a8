"""MT-Bench: ratings of 80 two-turn questions, and games of two models.

A judgment ends in "[[7]]"; the first such number is the rating, -1 where there is none or it is off the scale. A
model's score is the mean of all its ratings over both turns. In the pairwise mode a model wins only where both games,
in either order, say so.
Zheng et al. 2023, arXiv:2306.05685; FastChat's llm_judge (common.py, show_result.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import DataError

DOUBLE, SINGLE = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")
NO_RATING = -1
OUTCOMES = ("model_1", "model_2", "tie", "error")
WITH_REFERENCE = ("math", "reasoning", "coding")  # categories whose judge sees a reference answer
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


@dataclass(frozen=True)
class Ratings:
    """Means from 1 to 10; by_category is empty without the questions. unrated: judgments without a rating, left out."""

    score: float
    by_turn: dict[int, float]
    by_category: dict[str, float]
    rated: int
    unrated: int


@dataclass(frozen=True)
class Games:
    """Counts of questions and rates in percent; adjusted: (wins + ties / 2) / all. errors: left out."""

    wins: int
    losses: int
    ties: int
    errors: int

    @property
    def played(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> float:
        return 100 * self.wins / self.played

    @property
    def loss_rate(self) -> float:
        return 100 * self.losses / self.played

    @property
    def win_rate_adjusted(self) -> float:
        return 100 * (self.wins + self.ties / 2) / self.played


def asked_turns(question: Mapping[str, Any]) -> list[str]:
    """The two turns of a question.

    Raises:
        DataError: it has not two texts.
    """
    turns = question["turns"]
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"question {question['question_id']}: expected two turns, found {turns!r}. Give MT-Bench's "
                        "question.jsonl, or questions of its form.")  # fmt: skip
    return turns


def read_rating(judgment: str) -> float:
    """The first number in double brackets, else in single ones; -1 where there is none, or it is no rating."""
    match = DOUBLE.search(judgment) or SINGLE.search(judgment)
    value = float(match.group(1)) if match else NO_RATING
    return value if _is_rating(value) else NO_RATING


def _is_rating(value: float) -> bool:
    """The scale is 1 to 10, and 0 is let pass. FastChat counts any number, [[85]] and a footnote [12] too."""
    return 0 <= value <= 10


def read_winner(judgment: str) -> str:
    """A, B, tie or error; the first of [[A]], [[B]], [[C]] in this order that the judgment holds at all."""
    for mark, winner in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if mark in judgment:
            return winner
    return "error"


def score(rows: Sequence[Mapping[str, Any]], categories: Mapping[Any, str] | None = None) -> dict[str, Ratings]:
    """Model -> ratings, of single-answer judgments with question_id, model, turn and score.

    Args:
        rows: of one or several models; a rating that is there twice counts twice, as published.
        categories: question_id -> category.

    Raises:
        DataError: a score is no rating, a question is unknown, or a model has no rating.
    """
    judged: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        value = row["score"]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (value == NO_RATING or _is_rating(value))
        ):
            raise DataError(f"judgments row {number}: expected a score of 1 to 10, or -1 for none, found {value!r}.")
        if categories is not None and row["question_id"] not in categories:
            raise DataError(
                f"judgments row {number}: question {row['question_id']!r} is not among the questions given."
            )
        if isinstance(row["turn"], bool) or not isinstance(row["turn"], int):
            raise DataError(f"judgments row {number}: expected a turn of 1 or 2, found {row['turn']!r}.")
        judged.setdefault(row["model"], []).append(row)
    return {model: _means(model, own, categories or {}) for model, own in judged.items()}


def _means(model: str, rows: Sequence[Mapping[str, Any]], categories: Mapping[Any, str]) -> Ratings:
    rated = [row for row in rows if row["score"] != NO_RATING]
    if not rated:
        raise DataError(f"judgments of {model!r}: none of {len(rows)} has a rating. Judge it again.")
    turns: dict[int, list[float]] = {}
    kinds: dict[str, list[float]] = {}
    for row in rated:
        turns.setdefault(row["turn"], []).append(row["score"])
        if categories:
            kinds.setdefault(categories[row["question_id"]], []).append(row["score"])
    return Ratings(
        score=_mean([row["score"] for row in rated]),
        by_turn={turn: _mean(turns[turn]) for turn in sorted(turns)},
        by_category={kind: _mean(kinds[kind]) for kind in sorted(kinds, key=_official_order)},
        rated=len(rated),
        unrated=len(rows) - len(rated),
    )


def _official_order(category: str) -> tuple[int, str]:
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


def score_pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Games]:
    """Model -> games, of pairwise judgments with model_1, model_2, g1_winner and g2_winner.

    Raises:
        DataError: a winner is not one of the outcomes, or a model has no game that counts.
    """
    counts: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows, 1):
        first, second = row["g1_winner"], row["g2_winner"]
        if first not in OUTCOMES or second not in OUTCOMES:
            raise DataError(
                f"judgments row {number}: expected winners {', '.join(OUTCOMES)}, found {first!r}, {second!r}."
            )
        for side, other in (("model_1", "model_2"), ("model_2", "model_1")):
            own = counts.setdefault(row[side], dict.fromkeys(("wins", "losses", "ties", "errors"), 0))
            if "error" in (first, second):
                own["errors"] += 1
            elif first == second == side:
                own["wins"] += 1
            elif first == second == other:
                own["losses"] += 1
            else:
                own["ties"] += 1
    games = {model: Games(**own) for model, own in counts.items()}
    if empty := [model for model, own in games.items() if not own.played]:
        raise DataError(f"judgments of {empty[0]!r}: all games are errors. Judge them again.")
    return games


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
