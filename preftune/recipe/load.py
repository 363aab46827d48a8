"""From a recipe file and `key=value` overrides to a checked `Recipe`.

    file layer, override layer -> our names (compat) -> merged -> typed values -> Recipe

All keys are flat: those of the schema, those of the chosen objective, and every field of `TrainingArguments`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import RecipeError
from preftune.objectives import ON_POLICY, method_names, objective_class, objective_defaults
from preftune.recipe import compat, simpo_repository
from preftune.recipe.follow import follow
from preftune.recipe.layers import Given, Layer, merge, read_file, read_overrides
from preftune.recipe.schema import SCHEMA_KEYS, Recipe
from preftune.recipe.training import training_kinds
from preftune.recipe.trl import TRL_KEYS, fold_loss
from preftune.recipe.values import Mismatch, coerce, nearest

_DEFAULT_OBJECTIVE = "simpo"
_REQUIRED = {
    "model_name_or_path": "Add for example model_name_or_path: path/to/model.",
    "dataset": "Add for example dataset: path/to/pairs.jsonl.",
}


def load_recipe(path: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a YAML or JSON recipe; `overrides` win over the file.

    Args:
        path: the file, or None when the overrides say everything.
        overrides: `key=value`, `--key=value` or `nested.key=value`; or a mapping from key to value.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, or a value does not fit; one line that names file and
            key, what was expected, what was found, and what to do.
    """
    origin = "recipe" if path is None else str(path)
    file, last = {} if path is None else read_file(Path(path)), read_overrides(overrides)
    name = None if path is None else Path(path).stem
    return resolve(file, last, origin, name=name, published=True)


def resolve(
    file: Layer,
    last: Layer,
    origin: str,
    *,
    name: str | None = None,
    required: Mapping[str, str] | None = None,
    published: bool = False,
) -> Recipe:
    """The recipe of two layers, of which the second wins.

    Args:
        origin: what an error that is about no single key starts with.
        name: of the recipe, for its run folder.
        required: the keys that may not be left out, with the remedy.
        published: `file` is a recipe of its own, whose data and devices `last` may replace (`follow`).

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        file, last = _renamed(file, last, published)
        objective = _objective_of(merge(file, last), origin)
        layer = merge(compat.rename_own(file, objective), compat.rename_own(last, objective))
        layer = compat.refuse_senseless(compat.fold_gamma(layer, objective_defaults(objective)))
        kinds = _kinds(objective)
        _check_keys(layer, kinds, objective)
        values = {key: _typed(key, given, kinds[key]) for key, given in layer.items()}
    except RecursionError:
        raise RecipeError(f"{origin}: the values are nested without end; an anchor holds itself.") from None
    for key, remedy in (required or _REQUIRED).items():
        if key not in values:
            raise RecipeError(f"{origin}: '{key}' is missing. {remedy}")
    return _build(values, objective, origin, name, {key: given.place for key, given in layer.items()})


def _renamed(file: Layer, last: Layer, published: bool) -> tuple[Layer, Layer]:
    training = training_kinds()
    file = compat.rename(simpo_repository.to_our_keys(file), training)
    last = compat.rename(simpo_repository.to_our_keys(last), training)
    file, last = fold_loss(compat.override_gamma(file, last), last)
    return (follow(file, last) if published else file), last


def _objective_of(layer: Layer, origin: str) -> str:
    if "objective" not in layer:
        return _DEFAULT_OBJECTIVE
    given = layer["objective"]
    try:
        objective_class(str(given.value))
    except RecipeError as error:
        raise RecipeError(f"{given.place or origin}: {error}") from None
    return str(given.value)


def _kinds(objective: str) -> dict[str, Any]:
    """The type of every key that a recipe with this objective may have."""
    hints = typing.get_type_hints(Recipe)
    own = typing.get_type_hints(objective_class(objective))
    return {
        **training_kinds(),
        **{key: own[key] for key in objective_defaults(objective)},
        **{key: hints[key] for key in SCHEMA_KEYS},
    }


def _check_keys(layer: Layer, kinds: dict[str, Any], objective: str) -> None:
    for key, given in layer.items():
        if key in kinds:
            continue
        owners = sorted((n for n in method_names() if key in _names_of(n)), key=lambda n: n != _DEFAULT_OBJECTIVE)
        if owners:
            raise RecipeError(
                f"{given.place}: '{key}' is a key of {', '.join(owners)}, but 'objective' is {objective}. "
                f"Remove it, or set objective: {owners[0]}."
            )
        foreign = {name for method in ON_POLICY for name in objective_defaults(method)} - set(kinds)
        meant = nearest(key, sorted(known_keys() - foreign))
        remedy = "" if meant.endswith("?") else " Remove it; known are our own keys and those of TrainingArguments."
        raise RecipeError(f"{given.place}: '{key}' is not a key of a recipe{meant}{remedy}")


def known_keys() -> set[str]:
    """Every name that a recipe of any objective may have: keys, aliases, retired and refused ones."""
    known = {*training_kinds(), *SCHEMA_KEYS, *compat.ALIASES, *compat.GAMMAS, compat.WARMUP_RATIO}
    known |= {*compat.REFUSED, *compat.IGNORED, *compat.TRUNCATION_ALIASES, *compat.RENAMED_BY_TRANSFORMERS}
    return (
        known
        | {*TRL_KEYS, *simpo_repository.KEYS}
        | {name for other in method_names() for name in objective_defaults(other)}
    )


def _names_of(objective: str) -> set[str]:
    own = set(objective_defaults(objective))
    return own | set(compat.GAMMAS) if "gamma_beta_ratio" in own else own


# Words for null, of keys whose null means that the run chooses.
_CHOSEN = {"micro_batch_tokens": "auto"}


def _typed(key: str, given: Given, kind: Any) -> Any:
    if key in _CHOSEN and given.value == _CHOSEN[key]:
        return None
    try:
        return coerce(given.value, kind)
    except Mismatch as mismatch:
        expected = mismatch
    if given.text:  # on a command line `run_name=7` needs no quotes
        try:
            return coerce(given.text, kind)
        except Mismatch:
            pass
    found = "null" if given.value is None else repr(given.value)
    raise RecipeError(f"{given.place}: '{key}' must be {expected}, found {found}.")


def _build(values: dict[str, Any], objective: str, origin: str, name: str | None, places: dict[str, str]) -> Recipe:
    if name is not None:
        values.setdefault("output_dir", f"runs/{name}")
    own = objective_defaults(objective)
    return Recipe(
        **{key: values[key] for key in SCHEMA_KEYS if key in values},
        objective_args={key: values[key] for key in own if key in values},
        training={key: value for key, value in values.items() if key not in own and key not in SCHEMA_KEYS},
        origin=origin,
        places=places,
    )
