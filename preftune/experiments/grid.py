"""What a sweep tries: `--try learning_rate=3e-7,5e-7`, a published grid by name, all of it or drawn from it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import RecipeError
from preftune.recipe.values import Mismatch, coerce, nearest

Grid = dict[str, list[Any]]


def published(name: str, part: str) -> dict[str, Any]:
    """Part `search` (lists) or `best` (one setting) of `grids.yaml` for a method.

    Raises:
        RecipeError: there is no grid of that name.
    """
    grids = yaml.safe_load((Path(__file__).parent / "grids.yaml").read_text("utf-8"))
    if name not in grids:
        raise RecipeError(f"'{name}' is not a published grid{nearest(name, grids)} There are {', '.join(grids)}.")
    return dict(grids[name][part])


def read_grid(words: Sequence[str]) -> Grid:
    """`["beta=2,2.5"]` -> {"beta": [2, 2.5]}. A value with a comma in it is written as YAML: `x=[[a, b], [c]]`.

    Raises:
        RecipeError: a word is not key=values.
    """
    grid: Grid = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text.strip():
            raise RecipeError(f"--try {word!r}: expected key=value,value as in learning_rate=3e-7,5e-7.")
        try:
            values = yaml.safe_load(text if text.lstrip().startswith("[") else f"[{text}]")
        except yaml.YAMLError:
            raise RecipeError(f"--try {word!r}: the values are not YAML. Write key=value,value.") from None
        if key == "seed":
            raise RecipeError(f"--try {word!r}: every setting is run with the same seeds. Give them as --seeds.")
        if key in grid:
            raise RecipeError(f"--try names '{key}' twice. Give all its values in one.")
        if not values or None in values:
            raise RecipeError(f"--try {word!r}: a value is missing between the commas.")
        grid[key] = [_number(value) for value in values]
    return grid


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-7 as text."""
    try:
        return coerce(value, float) if isinstance(value, str) else value
    except Mismatch:
        return value


def combinations(grid: Mapping[str, Sequence[Any]], trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """All combinations of the grid's values, or `trials` different ones of them, drawn by the seed.

    Raises:
        RecipeError: there is nothing to try, or fewer combinations than trials.
    """
    if not grid:
        raise RecipeError("There is nothing to try. Give --try key=value,value or --grid NAME.")
    sizes = [len(values) for values in grid.values()]
    count = math.prod(sizes)
    if trials is None:
        return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    if not 0 < trials <= count:
        raise RecipeError(f"--random {trials}: the grid has {count} combinations. Give a number from 1 to {count}.")
    return [_at(grid, number) for number in sorted(random.Random(seed).sample(range(count), trials))]


def _at(grid: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """The combination with this number, in the order of `combinations`."""
    chosen = {}
    for key, values in reversed(grid.items()):
        number, place = divmod(number, len(values))
        chosen[key] = values[place]
    return dict(reversed(chosen.items()))
