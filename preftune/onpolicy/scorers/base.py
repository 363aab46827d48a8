"""What all scorers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from preftune.types import Example


@dataclass(frozen=True)
class Score:
    """Of one answer; `failure` says why `value` is None, or what is missing from it."""

    value: float | None
    failure: str | None = None


class Scorer(Protocol):
    """Something that scores answers, more being better."""

    def settings(self) -> dict[str, Any]:
        """What its scores depend on, beside prompt and answers; JSON values."""
        ...

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        """The scores of each example's responses, in their order."""
        ...


def to_score(value: float) -> Score:
    """Nine digits hold a float32, and a file read again gives the same number."""
    return Score(float(f"{value:.9g}"))


def conversation(example: Example) -> str:
    """The prompt as text: of one turn its words, of more the turns with who speaks."""
    if len(example.prompt) == 1:
        return example.prompt[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in example.prompt)
