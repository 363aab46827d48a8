"""Recipes: every setting of a run in one file of flat keys, checked before anything starts.

The names are imported when they are first used: the table of flags in here is read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.recipe.batch import Batch, resolve_batch
    from preftune.recipe.load import load_recipe
    from preftune.recipe.schema import Recipe, describe_objective

__all__ = ["Batch", "Recipe", "describe_objective", "load_recipe", "resolve_batch"]

_HOMES = {
    "Batch": "batch",
    "resolve_batch": "batch",
    "load_recipe": "load",
    "Recipe": "schema",
    "describe_objective": "schema",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
