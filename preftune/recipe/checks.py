"""What a recipe must fulfil beyond the types of its values: ranges, and keys that contradict each other.

Every message starts with the key it is about; the recipe puts the file in front of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preftune.errors import RecipeError
from preftune.recipe.batch import check_batch
from preftune.recipe.training import LIMITS

if TYPE_CHECKING:
    from preftune.recipe.schema import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse values out of range and contradictions.

    Raises:
        RecipeError: with the keys, their values and the remedy.
    """
    _check_limits(recipe)
    _check_lengths(recipe)
    _check_objective(recipe)
    _check_precision(recipe)
    _check_evaluation(recipe)
    check_batch(recipe)


def _check_limits(recipe: Recipe) -> None:
    for key, (holds, expected) in LIMITS.items():
        value = recipe.training[key] if key in recipe.training else getattr(recipe, key, None)
        if value is not None and not holds(value):
            raise RecipeError(f"'{key}' must be {expected}, found {value!r}.")


def _check_lengths(recipe: Recipe) -> None:
    for key in ("model_name_or_path", "dataset"):
        if not getattr(recipe, key):
            raise RecipeError(f"'{key}' is empty. Give a path or a name.")
    longest, prompt = recipe.max_length, recipe.max_prompt_length
    if prompt is not None and prompt >= longest:
        raise RecipeError(
            f"'max_prompt_length' {prompt} leaves no room for a response in 'max_length' {longest}. "
            "Lower the one or raise the other."
        )


def _check_objective(recipe: Recipe) -> None:
    if recipe.objective == "sft" and recipe.sft_weight:
        raise RecipeError(
            f"'sft_weight' {recipe.sft_weight:g} adds to 'objective' sft what it already is. Leave sft_weight out."
        )


def _check_precision(recipe: Recipe) -> None:
    training = recipe.training
    if training.get("bf16") and training.get("fp16"):
        raise RecipeError("'bf16' and 'fp16' are both true. Keep one of them.")
    for key, other in (("bf16", "float16"), ("fp16", "bfloat16")):
        if training.get(key) and recipe.torch_dtype == other:
            raise RecipeError(f"'torch_dtype' {other} and '{key}' true disagree. Keep one of them.")


def _check_evaluation(recipe: Recipe) -> None:
    training = recipe.training
    strategy = training.get("eval_strategy", "no")
    if recipe.eval_dataset is None and (strategy != "no" or training.get("eval_on_start")):
        key, value = ("eval_strategy", strategy) if strategy != "no" else ("eval_on_start", "true")
        raise RecipeError(f"'{key}' {value} needs data. Set eval_dataset, or leave {key} out.")
    if training.get("load_best_model_at_end"):
        _check_best_model(strategy, training)


def _check_best_model(strategy: object, training: dict[str, Any]) -> None:
    saves = training.get("save_strategy", "steps")
    if strategy == "no":
        raise RecipeError("'load_best_model_at_end' needs an evaluation to compare by. Set eval_dataset.")
    if saves not in ("best", strategy):
        raise RecipeError(
            f"'load_best_model_at_end' needs a checkpoint at every evaluation, but save_strategy is {saves} and "
            f"eval_strategy is {strategy}. Set save_strategy: {strategy}."
        )
