"""The keys of a recipe as a JSON schema (draft 2020-12), for editors that complete and check YAML.

Keys of every objective and of `TrainingArguments` are in it, with their types, choices and defaults; the names of other
tools that `load_recipe` understands are allowed too. Whether keys fit each other is for `preftune train --dry-run`.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from enum import Enum
from typing import Any, Literal

from preftune.objectives import method_names, objective_class, objective_defaults
from preftune.recipe.load import known_keys
from preftune.recipe.schema import SCHEMA_KEYS, Recipe
from preftune.recipe.training import training_kinds

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file."""
    hints, said = typing.get_type_hints(Recipe), _descriptions()
    properties: dict[str, Any] = {}
    for key, kind in training_kinds().items():
        properties[key] = _of(kind)
    for method in method_names():
        own = typing.get_type_hints(objective_class(method))
        for key, default in objective_defaults(method).items():
            properties.setdefault(key, {**_of(own[key]), "description": f"of {method}; {default} by default"})
    for key in SCHEMA_KEYS:
        properties[key] = {**_of(hints[key]), **({"description": said[key]} if key in said else {})}
    properties["objective"]["enum"] = sorted(method_names())
    for key in sorted(known_keys() - set(properties)):
        properties[key] = {"description": "a name of another tool, understood here"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "preftune recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _of(kind: Any) -> dict[str, Any]:
    """The schema of a type; numbers may be written as 5e-7, which YAML 1.1 reads as text."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        parts = [_of(member) for member in members]
        return {} if {} in parts else {"anyOf": parts}
    if origin is Literal:
        return {"enum": list(members)}
    if origin is list:
        return {"type": "array"}
    if origin is dict:
        return {"type": "object"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    if kind is float:
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"}]}
    return {"type": _SIMPLE[kind]} if kind in _SIMPLE else {}


def _descriptions() -> dict[str, str]:
    """Key to what the docstring of `Recipe` says of it."""
    text = inspect.getdoc(Recipe) or ""
    lines = text[text.index("Args:") : text.index("Raises:")].splitlines()[1:]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        start = re.match(r"    (\w[\w, ]*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
