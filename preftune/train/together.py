"""`preftune train A.yaml --together B.yaml ...`: adapters of several recipes over one frozen base, in one process.

The rows are read and the base model is loaded once. Each recipe has a trainer of its own, with its own adapter,
optimizer, log and run folder, and all take the gradients of a step in one pass (`preftune.train.meeting`). So what a
run leaves is what it would leave alone, and a run that ends early (a collapse, a step that is not finite) leaves the
others alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from preftune.errors import Interrupted, PreftuneError, RecipeError
from preftune.model.load import one_line
from preftune.model.stacked import check_stackable, share_base
from preftune.recipe import Recipe
from preftune.recipe.together import differences, obstacle
from preftune.train.meeting import Partner, hold_meeting
from preftune.train.needs import check_packages
from preftune.train.run import Loaded, build_arguments, load_run, quiet_transformers, refuse_to_forget, run_loaded
from preftune.train.trouble import check_writable, said_plainly

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How one of the runs ended. code: its exit code had it been alone; summary, or what it said."""

    code: int
    summary: dict[str, Any] | None = None
    said: str = ""


def train_together(recipes: Sequence[Recipe]) -> list[End]:
    """Train by several recipes at once; the ends in their order.

    Raises:
        RecipeError: they cannot be trained together.
        PreftuneError: the data or the model is wrong; nothing is written then.
        Interrupted: the user or the system stopped them; all have saved.
    """
    check_joined(recipes)
    for recipe in recipes:
        check_writable(Path(recipe.output_dir))
        refuse_to_forget(recipe)
    started = time.perf_counter()
    check_packages(recipes[0])
    quiet_transformers()
    with said_plainly(Path(recipes[0].output_dir)):
        loaded = load_run(recipes[0])
    check_stackable(loaded.model)
    logger.info("%d adapters train together over one base model.", len(recipes))
    models = [loaded.model, *(share_base(loaded.model) for _ in recipes[1:])]
    partners = [
        Partner(number, f"{number + 1} {recipe.objective}", model, partial(_run, recipe, loaded, started))
        for number, (recipe, model) in enumerate(zip(recipes, models, strict=True))
    ]
    hold_meeting(partners)
    stopped = [partner.error for partner in partners if isinstance(partner.error, Interrupted)]
    if stopped:
        raise Interrupted(f"{len(stopped)} of {len(partners)} runs have saved.", stopped[0].exit_code)
    return [_end(partner) for partner in partners]


def check_joined(recipes: Sequence[Recipe]) -> None:
    """Raises:
    RecipeError: the recipes cannot be trained together, with the reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("--together trains in one process. Start it without torchrun, accelerate or --nproc.")
    folders: dict[str, str] = {}
    for recipe in recipes:
        why = obstacle(recipe)
        if why is not None:
            raise RecipeError(f"{recipe.origin}: {why}. Train it alone.")
        changed = differences(recipes[0], recipe)
        if changed:
            raise RecipeError(
                f"{recipe.origin}: {', '.join(changed)} differ from {recipes[0].origin}. Recipes that train together "
                "differ in output_dir, the objective and its keys, and those of optimizer and schedule. Train it alone."
            )
        if recipe.output_dir in folders:
            first = folders[recipe.output_dir]
            raise RecipeError(
                f"{recipe.origin}: 'output_dir' {recipe.output_dir} is that of {first}. Give each its own."
            )
        folders[recipe.output_dir] = recipe.origin


def _run(recipe: Recipe, loaded: Loaded, started: float, partner: Partner) -> dict[str, Any]:
    own = replace(loaded, args=build_arguments(recipe), model=partner.model)
    with said_plainly(Path(recipe.output_dir)):
        return run_loaded(recipe, own, started, partner=partner)


def _end(partner: Partner) -> End:
    error = partner.error
    if error is None:
        return End(0, partner.result)
    if isinstance(error, PreftuneError):
        return End(error.exit_code, said=str(error))
    logger.error("A run ended in an error that is not foreseen.", exc_info=error)
    return End(1, said=f"{type(error).__name__}: {one_line(error)}")
