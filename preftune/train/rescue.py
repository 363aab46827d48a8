"""Rescue checkpoints: by the clock, whatever `save_steps` says, so that a lost machine costs minutes.

A rescue checkpoint (`rescue-N`) is as complete as any other and is resumed from when it is the newest. It does not
count for `save_total_limit`; two are kept. An ordinary checkpoint makes the older ones superfluous and removes them,
and so does the end of the run.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from preftune.train.checkpoint import RESCUES, STAGING, publish, rescues, step_of
from preftune.train.ranks import agreed


class RescueClock(TrainerCallback):
    """Asks for a checkpoint when the last one, of either kind, is `minutes` old; 0 never does.

    `asked` says in a save that it is a rescue checkpoint.
    """

    def __init__(self, minutes: float, device: torch.device) -> None:
        self.minutes, self.device = minutes, device
        self.asked = False
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.asked, self.saved = False, time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop:  # of a run that is stopped early, what is saved must be whole
            self.asked = control.should_save and args.save_only_model and state.global_step < state.max_steps
        elif not (_ends_an_epoch(state) and _acts_at_epoch_ends(args)):  # that is not done yet
            self._look(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not control.should_training_stop and _acts_at_epoch_ends(args):
            self._look(control)

    def _look(self, control: Any) -> None:
        if not self.minutes or control.should_save:
            return
        if agreed(time.monotonic() - self.saved >= 60 * self.minutes, self.device):
            self.asked = control.should_save = True

    def saves(self, args: Any, state: Any) -> bool:
        """Whether the checkpoint that is being saved is a rescue checkpoint."""
        best = args.save_strategy == SaveStrategy.BEST and state.best_global_step == state.global_step
        return self.asked and not best


def publish_step(run: Path, step: int, rescue: bool, args: Any, best: str | None) -> None:
    """Give the sealed checkpoint of a step its name, and remove those that it makes superfluous.

    Args:
        best: the folder of the best checkpoint so far, which stays.
    """
    publish(run / STAGING / f"checkpoint-{step}", run / (f"rescue-{step}" if rescue else f"checkpoint-{step}"))
    spare = rescues(run)[RESCUES:]
    if not rescue:
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=args.save_total_limit,
            best_model_checkpoint=best,
            use_mtime=False,
        )
        spare = [] if args.save_only_model else [path for path in rescues(run) if step_of(path) <= step]
    for path in spare:
        shutil.rmtree(path, ignore_errors=True)


def drop_rescues(run: Path) -> None:
    """At the end of a run, whose model is saved."""
    for path in rescues(run):
        shutil.rmtree(path, ignore_errors=True)


def _ends_an_epoch(state: Any) -> bool:
    return float(state.epoch).is_integer()


def _acts_at_epoch_ends(args: Any) -> bool:
    return "epoch" in (args.eval_strategy, args.save_strategy, args.logging_strategy)
