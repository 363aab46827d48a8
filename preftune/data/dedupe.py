"""Exact duplicates: rows with the same conversation and the same responses in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.types import Example


def drop_duplicates(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """The first of every set of equal examples, in order, and the others.

    Scores, weights and tools are compared too, origins are not.
    """
    seen: set[tuple[object, ...]] = set()
    kept: list[Example] = []
    doubles: list[Example] = []
    for example in examples:
        key = (example.prompt, example.responses, example.scores, example.weight, example.tools)
        (doubles if key in seen else kept).append(example)
        seen.add(key)
    return kept, doubles
