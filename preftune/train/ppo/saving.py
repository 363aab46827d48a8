"""Checkpoints of a PPO run: written aside, sealed and named as those of other runs (`preftune.train.checkpoint`)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from preftune.errors import TrainingError
from preftune.train.best import find_best
from preftune.train.checkpoint import STAGING, seal
from preftune.train.engines import DDP, ONE
from preftune.train.ppo.state import (
    STATE,
    load_random_state,
    load_training,
    load_window,
    save_random_state,
    save_training,
    save_window,
)
from preftune.train.redo import kept_tokens
from preftune.train.rescue import publish_step
from preftune.train.saving import facts_of_run, not_saved

KEPT = ("global_step", "epoch", "log_history", "best_metric", "best_global_step", "best_model_checkpoint")


def save_checkpoint(trainer: Any, best: bool) -> None:
    """`checkpoint-N`, or `rescue-N` where the clock has asked for it; every process calls this.

    Args:
        best: the step has the best figure so far.

    Raises:
        TrainingError: it cannot be written; those before it are intact.
    """
    run, name = Path(trainer.args.output_dir), f"checkpoint-{trainer.state.global_step}"
    rescue = trainer.clock.saves(trainer.args, trainer.state)
    if best and not rescue:
        trainer.state.best_model_checkpoint = str(run / name)
    try:
        _write(trainer, run, name, rescue)
    except (OSError, RuntimeError, SafetensorError) as cause:
        if trainer.state.is_world_process_zero:
            shutil.rmtree(run / STAGING, ignore_errors=True)  # room again, for whoever looks
        raise TrainingError(not_saved(cause, run, name)) from cause


def _write(trainer: Any, run: Path, name: str, rescue: bool) -> None:
    staged, first = run / STAGING / name, trainer.state.is_world_process_zero
    whole = rescue or not trainer.args.save_only_model
    if first:
        shutil.rmtree(run / STAGING, ignore_errors=True)  # what a crash left
        staged.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    if whole:
        save_random_state(staged, trainer.rank)
    if first:
        trainer.save_model(staged)
        if whole:
            save_training(staged, trainer.models, trainer.optimizer, trainer.scheduler)
            save_window(staged, trainer.window, trainer.guard.skipped)
        trainer.state.num_input_tokens_seen = trainer.tokens_seen
        trainer.state.save_to_json(str(staged / STATE))
    trainer.accelerator.wait_for_everyone()
    if first:
        facts = facts_of_run(trainer.identity(), trainer.settings, trainer.ranks)
        budget = {"asked": trainer.asked_tokens, "taken": trainer.updater.cut.max_tokens}
        more = {"step": trainer.state.global_step, "engine": _engine(trainer), "micro_batch_tokens": budget}
        seal(staged, {**facts, **more})
        publish_step(run, trainer.state.global_step, rescue, trainer.args, trainer.state.best_model_checkpoint)
    trainer.accelerator.wait_for_everyone()


def load_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Put everything back as it was after the checkpoint's step."""
    load_training(checkpoint, trainer.models, trainer.optimizer, trainer.scheduler)
    saved = TrainerState.load_from_json(str(checkpoint / STATE))
    for name in KEPT:
        setattr(trainer.state, name, getattr(saved, name))
    find_best(trainer.state, Path(trainer.args.output_dir))
    trainer.tokens_seen = saved.num_input_tokens_seen
    trainer.window, trainer.guard.skipped = load_window(checkpoint)
    kept = kept_tokens(checkpoint, trainer.asked_tokens, _engine(trainer), trainer.ranks)
    trainer.updater.cut = replace(trainer.updater.cut, max_tokens=kept or trainer.updater.cut.max_tokens)
    load_random_state(checkpoint, trainer.rank)


def _engine(trainer: Any) -> str:
    return DDP if trainer.ranks > 1 else ONE
