"""The global batch: groups of one optimizer step = per device x accumulation x processes.

How a step is cut into forward passes is another matter (`micro_batch_tokens`), and changes no result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from preftune.errors import RecipeError

if TYPE_CHECKING:
    from preftune.recipe.schema import Recipe

_DEFAULT_PER_DEVICE = 8  # that of TrainingArguments


class Batch(NamedTuple):
    """`per_device * accumulation * processes` groups make one optimizer step."""

    per_device: int
    accumulation: int
    processes: int

    @property
    def total(self) -> int:
        return self.per_device * self.accumulation * self.processes


def resolve_batch(recipe: Recipe, processes: int) -> Batch:
    """The batch keys of a recipe, for a number of processes.

    `total_batch_size` is met whatever the number of processes: by accumulation where `per_device_train_batch_size` is
    given, else by the per-device batch.

    Raises:
        RecipeError: the numbers do not fit; the message holds them.
    """
    total = recipe.total_batch_size
    per_device = recipe.training.get("per_device_train_batch_size")
    accumulation = recipe.training.get("gradient_accumulation_steps")
    if total is None:
        return Batch(per_device or _DEFAULT_PER_DEVICE, accumulation or 1, processes)
    given = (per_device or 1) * (accumulation or 1) * processes
    fixed = per_device is not None and accumulation is not None
    if total % given or (fixed and total != given):
        raise RecipeError(f"{recipe.origin}: {_misfit(total, per_device, accumulation, processes)}")
    rest = total // given
    if per_device is None:
        return Batch(rest, accumulation or 1, processes)
    return Batch(per_device, accumulation or rest, processes)


def check_batch(recipe: Recipe) -> None:
    """Refuse batch keys that fit no number of processes.

    Raises:
        RecipeError: the product of two of them does not divide the third.
    """
    total = recipe.total_batch_size
    per_device = recipe.training.get("per_device_train_batch_size")
    accumulation = recipe.training.get("gradient_accumulation_steps")
    if total is not None and total % ((per_device or 1) * (accumulation or 1)):
        raise RecipeError(_misfit(total, per_device, accumulation, None))


def _misfit(total: int, per_device: int | None, accumulation: int | None, processes: int | None) -> str:
    keys = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
    given = {key: value for key, value in keys.items() if value is not None}
    factors = [f"{key} {value}" for key, value in given.items()]
    factors += [] if processes is None else [f"{processes} process{'es' * (processes != 1)}"]
    product = (per_device or 1) * (accumulation or 1) * (processes or 1)
    relation = "is not" if len(factors) == 3 else "is not a multiple of"
    size = f" (= {product})" if len(factors) > 1 else ""
    remedy = f"leave {' or '.join(given)} out" if given else f"choose a multiple of {processes}"
    return f"'total_batch_size' {total} {relation} {' x '.join(factors)}{size}. Change it, or {remedy}."
