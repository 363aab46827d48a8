"""A form made from the fields of a recipe, and what was filled in as a recipe.

Numbers, switches and choices are in it by their type, so a new key of a recipe appears by itself. Texts are not, but
for those named here: they can be paths, and what is read must lie where the command line allows it. A model, a file and
a run are chosen from the lists of `places`; code that comes with a model is run by the command line alone.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, Literal

import yaml

from preftune.data.named_templates import TEMPLATES
from preftune.errors import RecipeError
from preftune.objectives import objective_class, objective_defaults, objective_names
from preftune.recipe import Recipe, describe_objective, load_recipe
from preftune.recipe.schema import GROUPS
from preftune.recipe.training import TRAINING_DEFAULTS, training_kinds
from preftune.web.places import Places

NOT_HERE = {"trust_remote_code"}
MODELS = ("model_name_or_path", "reference_model_name_or_path", "adapter_name_or_path")
FILES = ("dataset", "eval_dataset")
TEXTS = ("system_prompt", "lora_target_modules", "test_split_size", "lora_init", "master_weights", "columns")
NUMBER_OR_TEXT = ("test_split_size",)
CHOICES = {"chat_template": tuple(TEMPLATES)}
TRAINING = (
    "learning_rate lr_scheduler_type warmup_steps num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps weight_decay max_grad_norm bf16 gradient_checkpointing logging_steps eval_strategy "
    "eval_steps save_strategy save_steps save_total_limit seed"
).split()
FIRST = "first"  # the group of what nearly every run sets
COMMON = (*MODELS[:1], "dataset", "eval_dataset", "objective", "learning_rate", "num_train_epochs", "max_steps")
COMMON += ("total_batch_size", "max_length", "logging_steps", "use_peft")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def build_form(objective: str) -> list[dict[str, Any]]:
    """The groups of the form, each with its fields: name, kind, choices, default, help.

    Raises:
        RecipeError: there is no such objective.
    """
    own = objective_defaults(objective)
    names = {
        FIRST: COMMON,
        **GROUPS,
        "objective": (*GROUPS["objective"], *own),
        "training": tuple(TRAINING),
    }
    groups = []
    for group, keys in names.items():
        found = [_field(key, objective) for key in keys if group == FIRST or key not in COMMON]
        if shown := [one for one in found if one]:
            groups.append({"name": group, "fields": shown})
    return groups


def resolve_form(places: Places, name: str, values: dict[str, str]) -> tuple[str, Recipe]:
    """The YAML of a recipe with what was filled in, and the recipe itself.

    Args:
        name: of the run, and of its folder below the runs.
        values: key to text, as a command line would have it; an empty one is left out.

    Raises:
        RecipeError: a key or a value is wrong, or is not for this form.
    """
    if not RUN_NAME.fullmatch(name):
        raise RecipeError("The name of the run must be of letters, digits, '-', '_' and '.', and begin with neither.")
    filled = {key: value for key, value in values.items() if value.strip()}
    objective = filled.get("objective", "simpo")
    known = {field["name"]: field for group in build_form(objective) for field in group["fields"]}
    for key, value in filled.items():
        if key not in known:
            raise RecipeError(f"'{key}' is not a field of this form with objective {objective}. Empty it.")
        _check_place(places, key, value)
    text = yaml.safe_dump(
        {key: _typed(key, value, known[key]["kind"]) for key, value in filled.items()}
        | {"output_dir": str(places.runs / name)},
        sort_keys=False,
        allow_unicode=True,
    )
    recipe = load_recipe(None, yaml.safe_load(text))
    return f"# {describe_objective(recipe)}\n\n{text}", recipe


def _check_place(places: Places, key: str, value: str) -> None:
    if key in MODELS:
        places.find_model(value)
    if key in FILES:
        places.find_data(value)
    if key in CHOICES and value not in CHOICES[key]:
        raise RecipeError(f"'{key}' must be one of {', '.join(CHOICES[key])}, found '{value}'.")


def _typed(key: str, value: str, kind: str) -> Any:
    """Numbers and switches as such, so that the YAML reads as one that was written by hand."""
    if key == "columns":
        return read_columns(value)
    if kind in ("integer", "number") or key in NUMBER_OR_TEXT:
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return {"true": True, "false": False}.get(value, value) if key != "system_prompt" else value


def read_columns(text: str) -> dict[str, str | None]:
    """`question=prompt good=chosen bad=rejected id=`: the file's names to known ones; nothing ignores the column.

    Raises:
        RecipeError: a word has no `=`.
    """
    found: dict[str, str | None] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        name, equals, role = word.rpartition("=")
        if not equals or not name:
            raise RecipeError(f"'columns' must be words such as question=prompt, found '{word}'.")
        found[name] = role or None
    return found


def _field(key: str, objective: str) -> dict[str, Any] | None:
    """A field of the form; None for a key that has no place in it."""
    if key in NOT_HERE:
        return None
    if key == "objective":
        return _made(key, "choice", objective_names(), objective)
    if key in MODELS or key in FILES:
        return _made(key, "model" if key in MODELS else "file", [], None)
    if key in CHOICES:
        return _made(key, "choice", list(CHOICES[key]), None)
    default = _default(key, objective)
    if key in TEXTS:
        return _made(key, "text", [], default)
    kind, choices = _kind(_hint(key, objective))
    return None if kind is None else _made(key, kind, choices, default)


def _made(key: str, kind: str, choices: list[str], default: Any) -> dict[str, Any]:
    shown = None if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    return {"name": key, "kind": kind, "choices": choices, "default": shown, "help": _help().get(key, "")}


def _kind(hint: Any) -> tuple[str | None, list[str]]:
    """integer, number, switch or choice; None for what can be any text, list or map."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(member) for member in members if member is not type(None) and member is not str]
        enums = [found for found in kinds if found[0] == "choice"]
        if str in members and not enums:
            return None, []
        return kinds[0] if len({kind for kind, _ in kinds}) == 1 else _widest(kinds)
    if origin is Literal:
        return "choice", [str(member) for member in members]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "choice", [str(member.value) for member in hint]
    return {bool: "switch", int: "integer", float: "number"}.get(hint), ["true", "false"] if hint is bool else []


def _widest(kinds: list[tuple[str | None, list[str]]]) -> tuple[str | None, list[str]]:
    """`int | float` is a number; anything else that is mixed has no field."""
    return ("number", []) if {kind for kind, _ in kinds} == {"integer", "number"} else (None, [])


def _hint(key: str, objective: str) -> Any:
    own = typing.get_type_hints(objective_class(objective))
    if key in objective_defaults(objective):
        return own[key]
    return _recipe_hints().get(key) or training_kinds()[key]


@cache
def _recipe_hints() -> dict[str, Any]:
    keys = {key for group in GROUPS.values() for key in group}
    return {key: hint for key, hint in typing.get_type_hints(Recipe).items() if key in keys}


def _default(key: str, objective: str) -> Any:
    own = objective_defaults(objective)
    if key in own:
        return own[key]
    declared = {field.name: field.default for field in fields(Recipe)}
    return declared.get(key) if key in declared else TRAINING_DEFAULTS.get(key)


@cache
def _help() -> dict[str, str]:
    """Key to the sentence that the schema has about it."""
    text = inspect.getdoc(Recipe) or ""
    text = text.partition("Args:")[2].partition("Raises:")[0]
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name.strip(): " ".join(said.split()) for names, said in entries for name in names.split(",")}
