"""Experiment trackers (`report_to`) that may be absent or out of reach: a line in the log, and the run goes on.

`log.jsonl`, `summary.json` and the plots are written whatever a tracker does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from preftune.errors import RecipeError
from preftune.recipe.values import nearest

logger = logging.getLogger(__name__)
_INSTEAD = "the run goes on with log.jsonl and plots/ alone"


def usable_trackers(report_to: str | list[str] | None) -> list[str]:
    """Those of `report_to` that are installed.

    Raises:
        RecipeError: there is no such tracker.
    """
    asked = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if asked == ["all"]:
        return list(get_available_reporting_integrations())
    for name in asked:
        if name not in INTEGRATION_TO_CALLBACK and name != "none":
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            near = nearest(name, INTEGRATION_TO_CALLBACK)
            raise RecipeError(f"'report_to' names '{name}', which is no tracker{near} Known: all, none, {known}.")
    installed = get_available_reporting_integrations()
    missing = [name for name in asked if name not in installed and name != "none"]
    if missing:
        logger.warning("report_to: %s is not installed; %s.", ", ".join(missing), _INSTEAD)
    return [name for name in asked if name in installed]


def guard_trackers(trainer: Trainer) -> None:
    """Let no tracker end the run: the first error of one is a line in the log, and it is not called again."""
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    guard(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds))


def guard(callbacks: Iterable[TrainerCallback]) -> None:
    """Replace the events of each callback by ones that do not raise."""
    for callback in callbacks:
        broken: list[BaseException] = []
        for event in (name for name in dir(callback) if name.startswith("on_")):
            setattr(callback, event, _guarded(getattr(callback, event), type(callback).__name__, broken))


def _guarded(event: Callable[..., Any], name: str, broken: list[BaseException]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if broken:
            return None
        try:
            return event(*args, **kwargs)
        except Exception as cause:
            broken.append(cause)
            text = " ".join(str(cause).split())[:200]
            tracker = name.removesuffix("Callback")
            logger.warning("%s cannot be used (%s: %s); %s.", tracker, type(cause).__name__, text, _INSTEAD)
            return None

    return call
