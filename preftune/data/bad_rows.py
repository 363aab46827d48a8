"""Rows that cannot be trained on: what is wrong with them, and the count of those that were left out.

A row is bad by itself (two equal answers, a tie, a null); a file whose columns give no form is another matter and is
refused whatever `on_bad_row` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from preftune.errors import DataError
from preftune.types import Origin

OnBadRow = Literal["error", "skip"]
NAMED = 3  # rows of each problem that are named


class Problem(StrEnum):
    """What is wrong with a row."""

    MISSING = "missing column"
    NULL = "null"
    WRONG_TYPE = "wrong type"
    BROKEN_TEXT = "broken text"
    EMPTY_PROMPT = "empty prompt"
    NO_PROMPT = "no prompt"
    DIFFERENT_PROMPTS = "differing prompts"
    TWICE_TOLD = "prompt given twice"
    UNKNOWN_ROLE = "unknown role"
    WRONG_TURN = "wrong last speaker"
    EMPTY_ANSWER = "empty answer"
    EQUAL_ANSWERS = "equal answers"
    TIE = "tie"
    TOO_FEW = "too few responses"
    WRONG_NUMBER = "wrong number"
    WRONG_TOOLS = "wrong tools"
    CONTRADICTION = "scores contradict the pair"


class BadRowError(DataError):
    """One row is wrong; `problem` says in which way, `origin` where."""

    def __init__(self, origin: Origin, problem: Problem, sentence: str) -> None:
        super().__init__(f"{origin}: {sentence}")
        self.origin, self.problem = origin, problem


@dataclass
class SkippedRows:
    """How many rows were left out with `on_bad_row: skip`, by problem, and the first of each. Grows with every file."""

    read: int = 0
    counts: dict[Problem, int] = field(default_factory=dict)
    first: dict[Problem, list[Origin]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, bad: BadRowError) -> None:
        self._count(bad.problem, 1, [bad.origin])

    def update(self, other: SkippedRows) -> None:
        self.read += other.read
        for problem, count in other.counts.items():
            self._count(problem, count, other.first[problem])

    def _count(self, problem: Problem, count: int, origins: list[Origin]) -> None:
        self.counts[problem] = self.counts.get(problem, 0) + count
        named = self.first.setdefault(problem, [])
        named += origins[: NAMED - len(named)]

    def __str__(self) -> str:
        """`4 of 760 rows skipped: equal answers 2 (x.jsonl[train] row 131, row 207), empty answer 2 (...)`."""
        head = f"{self.total} of {self.read} rows skipped"
        said = [f"{problem} {self.counts[problem]} ({self._places(problem)})" for problem in self.counts]
        return f"{head}: {', '.join(said)}" if said else head

    def _places(self, problem: Problem) -> str:
        origins = self.first[problem]
        places: list[str] = []
        file = None
        for origin in origins:
            places.append(f"row {origin.row}" if (origin.dataset, origin.split) == file else str(origin))
            file = (origin.dataset, origin.split)
        return ", ".join(places) + (", …" if self.counts[problem] > len(origins) else "")

    def to_dict(self) -> Mapping[str, Any]:
        """read, skipped, and for each problem its count and the first rows as text."""
        problems = {
            str(problem): {"count": count, "first": [str(origin) for origin in self.first[problem]]}
            for problem, count in self.counts.items()
        }
        return {"read": self.read, "skipped": self.total, "problems": problems}
