"""preftune: preference alignment of language models, with SimPO at its centre.

The public names are imported when they are first used, so that `import preftune` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from preftune.data import load_preferences
    from preftune.model.load import load_model
    from preftune.objectives import load_objective
    from preftune.train.check import check
    from preftune.train.trainer import PreferenceTrainer

__all__ = ["PreferenceTrainer", "__version__", "check", "load_model", "load_objective", "load_preferences", "train"]

_HOMES = {
    "PreferenceTrainer": "preftune.train.trainer",
    "check": "preftune.train.check",
    "load_model": "preftune.model.load",
    "load_objective": "preftune.objectives",
    "load_preferences": "preftune.data",
}


def __getattr__(name: str) -> Any:
    if name == "train":  # the package itself, which can be called: see preftune/train/__init__.py
        return importlib.import_module("preftune.train")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'preftune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
