"""Training: the step, the trainer, the run. The package can be called: `from preftune import train; train("x.yaml")`.

Importing `preftune.train.run` makes Python bind the name `preftune.train` to this package, over any function of that
name. So the package is that function.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, recipe: str | Path | None, **values: Any) -> dict[str, Any]:
        """Train by a recipe file, with keys of the recipe as keyword arguments; returns the summary.

        Raises:
            PreftuneError: the recipe, the data or the model is wrong.
        """
        from preftune.train.run import train

        return train(recipe, **values)


sys.modules[__name__].__class__ = _CallableModule
