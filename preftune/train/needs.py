"""Optional packages that a recipe asks for, looked for before anything is read."""

from __future__ import annotations

from importlib.util import find_spec

from preftune.errors import MissingExtraError
from preftune.recipe import Recipe


def check_packages(recipe: Recipe) -> None:
    """DeepSpeed; adapters and quantised weights are looked after where they are made.

    Raises:
        MissingExtraError: it is not installed; with the extra that brings it.
    """
    if recipe.training.get("deepspeed") and find_spec("deepspeed") is None:
        place = recipe.places.get("deepspeed", recipe.origin)
        raise MissingExtraError(f"{place}: 'deepspeed'", "deepspeed")
