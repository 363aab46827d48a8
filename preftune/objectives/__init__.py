"""Objectives by name. The name of an objective is the name of its file; its dataclass fields are its recipe keys.

PPO stands apart: it trains on responses that it samples itself, so it is no function of given ones. A recipe names it
as it names an objective.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import fields

from preftune.errors import RecipeError
from preftune.objectives.base import Method, Objective

ON_POLICY = ("ppo",)  # methods of a recipe that are no `Objective`


def objective_names() -> list[str]:
    """The names of all objectives, sorted."""
    others = ("base", *ON_POLICY)
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in others)


def method_names() -> list[str]:
    """All that a recipe may name as its objective."""
    return [*objective_names(), *ON_POLICY]


def objective_class(name: str) -> type[Method]:
    """The dataclass of the objective, or method, called `name`.

    Raises:
        RecipeError: there is no such objective; the message names the nearest one.
    """
    if name not in method_names():
        near = difflib.get_close_matches(name, method_names(), n=1)
        meant = f"; did you mean '{near[0]}'?" if near else "."
        raise RecipeError(f"'objective' {name!r} is not known{meant} Known: {', '.join(method_names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return next(c for c in found if issubclass(c, Method))


def objective_defaults(name: str) -> dict[str, object]:
    """The recipe keys of an objective with their defaults."""
    objective = objective_class(name)()
    return {field.name: getattr(objective, field.name) for field in fields(objective)}


def load_objective(name: str, **values: object) -> Objective:
    """Build an objective: `load_objective("simpo", beta=2.0, gamma_beta_ratio=0.5)`.

    Raises:
        RecipeError: the name or a key is not known, a value is out of range, or it is a method that samples.
    """
    method = load_method(name, **values)
    if not isinstance(method, Objective):
        raise RecipeError(
            f"'objective' {name} trains on responses that it samples itself, and no others. Run it by a recipe: "
            f"preftune train, or preftune {name}."
        )
    return method


def load_method(name: str, **values: object) -> Method:
    """Build what a recipe names as its objective.

    Raises:
        RecipeError: the name or a key is not known, or a value is out of range.
    """
    known = objective_defaults(name)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else "."
            raise RecipeError(f"'{key}' is not a key of {name}{meant} Its keys: {', '.join(known) or 'none'}.")
    return objective_class(name)(**values)
