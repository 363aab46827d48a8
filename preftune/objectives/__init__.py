"""Objectives by name. The name of an objective is the name of its file; its dataclass fields are its recipe keys."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import fields

from preftune.errors import RecipeError
from preftune.objectives.base import Objective


def objective_names() -> list[str]:
    """The names of all objectives, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def objective_class(name: str) -> type[Objective]:
    """The dataclass of the objective called `name`.

    Raises:
        RecipeError: there is no such objective; the message names the nearest one.
    """
    if name not in objective_names():
        near = difflib.get_close_matches(name, objective_names(), n=1)
        meant = f"; did you mean '{near[0]}'?" if near else "."
        raise RecipeError(f"'objective' {name!r} is not known{meant} Known: {', '.join(objective_names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return next(c for c in found if issubclass(c, Objective))


def objective_defaults(name: str) -> dict[str, object]:
    """The recipe keys of an objective with their defaults."""
    objective = objective_class(name)()
    return {field.name: getattr(objective, field.name) for field in fields(objective)}


def load_objective(name: str, **values: object) -> Objective:
    """Build an objective: `load_objective("simpo", beta=2.0, gamma_beta_ratio=0.5)`.

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
