"""Recipes: every setting of a run in one file of flat keys, checked before anything starts."""

from preftune.recipe.batch import Batch, resolve_batch
from preftune.recipe.load import load_recipe
from preftune.recipe.schema import Recipe, describe_objective

__all__ = ["Batch", "Recipe", "describe_objective", "load_recipe", "resolve_batch"]
