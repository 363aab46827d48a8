"""The guard rails before a run: those that speak without weights and rows, for a dry run and a check.

In: a recipe and the processes that would train. Out: the warnings that the run would log. The model's size is that of
its config where this is on the machine, else the one in its name; no hub is asked.
"""

from __future__ import annotations

import logging

from preftune.errors import RecipeError
from preftune.model.at_hand import has_own_template, parameters_at_hand
from preftune.model.bf16 import device_without_bf16
from preftune.recipe import Recipe, resolve_batch
from preftune.recipe.guards import bf16_guard, guard_rails, ppo_guard

logger = logging.getLogger(__name__)


def forewarnings(recipe: Recipe, processes: int = 1) -> list[str]:
    """What the guard rails say of these settings, one line each."""
    found = [bf16_guard(recipe, device_without_bf16(bool(recipe.training.get("use_cpu")))), warning_of_ppo(recipe)]
    warnings = [line for line in found if line is not None]
    name = recipe.model_name_or_path
    parameters = parameters_at_hand(name, recipe.model_revision, recipe.trust_remote_code)
    if parameters is not None:
        return warnings + guard_rails(recipe, parameters, _batch(recipe, processes), processes)
    logger.info("The size of '%s' is not known here: guard rails that need it speak when the model is loaded.", name)
    return warnings


def warning_of_ppo(recipe: Recipe) -> str | None:
    """`ppo_guard`, with the model's own template looked up."""
    if recipe.objective != "ppo":
        return None
    place = recipe.tokenizer_name_or_path or recipe.model_name_or_path
    return ppo_guard(recipe, has_own_template(place, recipe.model_revision))


def _batch(recipe: Recipe, processes: int) -> int:
    try:
        return resolve_batch(recipe, processes).total
    except RecipeError:  # the numbers are for more processes than are here; that is said when the run starts
        return recipe.total_batch_size or 0
