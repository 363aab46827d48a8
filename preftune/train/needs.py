"""Optional packages that a recipe asks for, looked for before anything is read."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from preftune.errors import MissingExtraError
from preftune.model.liger import check_liger
from preftune.recipe import Recipe


def check_packages(recipe: Recipe) -> None:
    """DeepSpeed and Liger; adapters and quantised weights are looked after where they are made.

    Raises:
        MissingExtraError: one is not installed; with the extra that brings it.
        RecipeError: Liger is asked for without a GPU.
    """
    if recipe.training.get("use_liger_kernel"):
        check_liger(torch.cuda.is_available() and not recipe.training.get("use_cpu"))
    if recipe.training.get("deepspeed") and find_spec("deepspeed") is None:
        place = recipe.places.get("deepspeed", recipe.origin)
        raise MissingExtraError(f"{place}: 'deepspeed'", "deepspeed")
