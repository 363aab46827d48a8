"""A recipe run from end to end: load, tokenise, train, and leave the run folder.

recipe.yaml  log.jsonl  summary.json  plots/*.png  README.md  checkpoint-N/  and the model in transformers' files
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as hf_logging

from preftune import __version__
from preftune.data import TokenizationReport
from preftune.data.plan import Cut
from preftune.errors import CheckpointError, Interrupted, RecipeError
from preftune.model.bf16 import device_without_bf16
from preftune.model.heads import save_value_head
from preftune.model.sharding import count_parameters, shape_of
from preftune.objectives import load_objective
from preftune.objectives.base import Reads
from preftune.recipe import Recipe, describe_objective, load_recipe, resolve_batch
from preftune.recipe.guards import bf16_guard, guard_rails
from preftune.train.arguments import PreferenceArguments
from preftune.train.best import say_best
from preftune.train.budget import choose_micro_batch_tokens
from preftune.train.card import write_card
from preftune.train.checkpoint import (
    LOG,
    SUMMARY,
    checkpoints,
    is_unfinished,
    open_run,
    resolve_resume,
    step_of,
)
from preftune.train.checkpointing import settle_checkpoint_layers
from preftune.train.data import load_groups
from preftune.train.identity import run_settings
from preftune.train.interrupt import SaveOnInterrupt
from preftune.train.margins import record_margins
from preftune.train.meeting import Partner
from preftune.train.models import check_fits, check_positions, load_reference_model, load_trained_model
from preftune.train.needs import check_packages
from preftune.train.plots import plot_log
from preftune.train.ranks import leave_at_exit
from preftune.train.record import RunLog, TerminalProgress, peak_memory_gib, read_log
from preftune.train.rescue import drop_rescues
from preftune.train.scored import write_scored
from preftune.train.stream import GroupStream
from preftune.train.tokenizer import load_run_tokenizer
from preftune.train.trackers import guard_trackers, usable_trackers
from preftune.train.trainer import PreferenceTrainer
from preftune.train.trouble import check_room, check_writable, said_plainly
from preftune.train.watch import watch_collapse
from preftune.types import TokenizedGroup

logger = logging.getLogger(__name__)


def train(recipe: str | Path, **overrides: Any) -> dict[str, Any]:
    """Train by a recipe file: `train("recipe.yaml", learning_rate=5e-7)` returns the summary."""
    return train_recipe(load_recipe(recipe, overrides))


def train_recipe(recipe: Recipe, *, callbacks: Iterable[TrainerCallback] = ()) -> dict[str, Any]:
    """Train by a recipe and return what `summary.json` holds.

    Raises:
        PreftuneError: the recipe, the data, the model or a checkpoint is wrong; nothing is written before the data and
            the model have been read.
        TrainingError: something from outside ended it: the disk, another process, memory.
        Interrupted: the user or the system stopped the run; a checkpoint was saved.
    """
    folder = Path(recipe.output_dir)
    check_writable(folder)
    refuse_to_forget(recipe)
    with said_plainly(folder):
        return _train(recipe, callbacks)


def _train(recipe: Recipe, callbacks: Iterable[TrainerCallback]) -> dict[str, Any]:
    started = time.perf_counter()
    check_packages(recipe)
    quiet_transformers()
    if recipe.objective == "ppo":
        return _train_ppo(recipe, callbacks)
    return run_loaded(recipe, load_run(recipe), started, callbacks)


@dataclass(frozen=True)
class Loaded:
    """What a run is made of; `known` are the groups that are known before training."""

    args: PreferenceArguments
    tokenizer: PreTrainedTokenizerBase
    groups: list[TokenizedGroup] | GroupStream
    report: TokenizationReport
    known: list[TokenizedGroup]
    held_out: list[TokenizedGroup] | None
    model: Any
    reference: Any


def load_run(recipe: Recipe) -> Loaded:
    """Tokenizer, rows and models of a recipe.

    Raises:
        PreftuneError: the data or the model is wrong.
    """
    tokenizer, new_tokens = load_run_tokenizer(recipe)
    groups, report, known = _load_training(recipe, tokenizer)
    held_out = None
    if recipe.evaluates:
        held_out, _ = load_groups(recipe, tokenizer, recipe.eval_dataset or recipe.dataset, "test")
    args = build_arguments(recipe)
    set_seed(args.seed)
    model = load_trained_model(recipe, tokenizer, new_tokens)
    return Loaded(args, tokenizer, groups, report, known, held_out, model, load_reference_model(recipe, new_tokens))


def run_loaded(
    recipe: Recipe,
    loaded: Loaded,
    started: float,
    callbacks: Iterable[TrainerCallback] = (),
    partner: Partner | None = None,
) -> dict[str, Any]:
    """Train what is loaded, leave the run folder, and return the summary.

    Args:
        started: when, by `time.perf_counter`.
        partner: whom it takes its steps with.
    """
    args, tokenizer, model, reference = loaded.args, loaded.tokenizer, loaded.model, loaded.reference
    groups, report, known, held_out = loaded.groups, loaded.report, loaded.known, loaded.held_out
    for warning in guard_rails(
        recipe, count_parameters(model), args.train_batch_size * args.world_size, args.world_size
    ):
        logger.warning(warning)
    settled = settle_checkpoint_layers(recipe, args, model, reference)
    rows = known + (held_out or [])
    _check_fits(model, recipe.model_name_or_path, tokenizer, rows)
    if recipe.streaming:
        check_positions(model.config, recipe.max_length, recipe.model_name_or_path)
    if reference is not None:
        _check_fits(reference, recipe.reference_model_name_or_path, tokenizer, rows)
    folder = Path(recipe.output_dir)
    resume = resolve_resume(args.resume_from_checkpoint, folder)
    progress, interrupt = TerminalProgress(recipe.objective), SaveOnInterrupt()
    if partner is not None:
        progress, interrupt = partner.progress, partner.interrupt
    rows_known = None if recipe.streaming else known
    tokens = choose_micro_batch_tokens(settled, args, model, reference, groups=rows_known, resume=resume)
    trainer = PreferenceTrainer(
        model,
        args,
        objective=load_objective(recipe.objective, **recipe.objective_args),
        train_dataset=groups,
        eval_dataset=held_out,
        processing_class=tokenizer,
        sft_weight=recipe.effective_sft_weight,
        sft_normalization=recipe.effective_sft_normalization,
        reference_model=reference,
        precompute_reference=recipe.precompute_reference,
        reference_cache=recipe.reference_cache,
        cut=Cut(max_tokens=tokens),
        road=recipe.road,
        share_prompt=recipe.share_prompt,
        keep_dropout=not recipe.disable_dropout,
        master_weights=recipe.master_weights,
        checkpoint_layers=settled.checkpoint_layers,
        rescue_minutes=recipe.rescue_minutes,
        on_nonfinite=recipe.on_nonfinite,
        optimizer_state=recipe.optimizer_state,
        callbacks=[RunLog(folder), progress, interrupt, *callbacks],
    )
    if partner is not None:
        trainer.partner, partner.trainer = partner, trainer
    trainer.settings, trainer.verified = run_settings(recipe, args), resume
    trainer.asked_tokens = recipe.micro_batch_tokens
    trainer.upload_later = True
    del reference, loaded  # the trainer drops it once its log-probs are precomputed
    trainer.remove_callback(PrinterCallback)  # TerminalProgress prints
    guard_trackers(trainer)
    watch = (
        watch_collapse(trainer, recipe.watch_prompts, recipe.watch_steps, recipe.on_collapse) if recipe.watch else None
    )
    if recipe.record_margins:
        record_margins(trainer)
    if resume is not None:
        trainer.check_same_run(resume)
    trainer.accelerator.wait_for_everyone()  # all have looked for the checkpoint before anything is moved
    if trainer.is_world_process_zero():
        _open_folder(recipe, folder, resume)
        _announce(recipe, report, trainer)
        _look_at_the_disk(trainer, folder, recipe.rescue_minutes)
    loop = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=resume)
        if watch is not None:
            watch.settle()
        if recipe.training.get("do_eval") and held_out and not interrupt.asked:
            _evaluate_the_end(trainer)
    finally:
        progress.close()
        interrupt.close()
    loop = time.perf_counter() - loop
    leave_at_exit()
    if interrupt.asked and trainer.state.global_step < trainer.state.max_steps:
        again = f"preftune train {folder}/recipe.yaml resume_from_checkpoint=true"
        raise Interrupted(f"saved; go on with: {again}", interrupt.exit_code)
    trainer.save_model()
    if trainer.is_world_process_zero() and hasattr(trainer.model, "peft_config"):
        from preftune.model.lora import save_plain_lora  # the extra `lora`

        save_plain_lora(trainer.model, folder)
    if trainer.is_world_process_zero() and trainer.loss.objective.reads == Reads.SCORES:
        save_value_head(trainer.model, folder, recipe.value_head_format)
        write_scored(trainer, folder)
    done_before = step_of(resume) if resume else 0
    summary = _summary(recipe, trainer, report, done_before, loop, time.perf_counter() - started)
    best = say_best(trainer)
    summary |= {} if best is None else {"best": best}
    summary |= {} if watch is None else {"watch": watch.summary(loop)}
    if trainer.is_world_process_zero():
        write_run_files(recipe, folder, summary)
        drop_rescues(folder)
        if args.push_to_hub:
            trainer.upload_run()
    return summary


def _train_ppo(recipe: Recipe, callbacks: Iterable[TrainerCallback]) -> dict[str, Any]:
    from preftune.train.ppo.run import run_ppo

    args = build_arguments(recipe)
    summary = run_ppo(recipe, args, callbacks)
    if args.process_index == 0:
        write_run_files(recipe, Path(recipe.output_dir), summary)
        drop_rescues(Path(recipe.output_dir))
    return summary


def refuse_to_forget(recipe: Recipe) -> None:
    """A run that was stopped is gone on with or left, but not by accident.

    Raises:
        CheckpointError: there is one, and `resume_from_checkpoint` says nothing of it.
    """
    folder, said = Path(recipe.output_dir), recipe.training.get("resume_from_checkpoint")
    if said is None and is_unfinished(folder):
        step = step_of(checkpoints(folder)[0])
        raise CheckpointError(
            f"'{folder}' holds a run that was stopped after step {step}. Go on with resume_from_checkpoint=true, or "
            "start afresh with resume_from_checkpoint=false (its checkpoints are set aside)."
        )


def _look_at_the_disk(trainer: PreferenceTrainer, folder: Path, rescue_minutes: float) -> None:
    args, steps = trainer.args, trainer.args.max_steps
    if steps <= 0:
        steps = math.ceil(len(trainer.get_train_dataloader()) * args.num_train_epochs)
    short = check_room(folder, trainer.model, args, steps, rescue_minutes)
    if short is not None:
        logger.warning(short)


def _open_folder(recipe: Recipe, folder: Path, resume: Path | None) -> None:
    """The run folder with the recipe, and without what an earlier run left of the steps to come."""
    open_run(folder, resume)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def _load_training(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedGroup] | GroupStream, TokenizationReport, list[TokenizedGroup]]:
    """What is trained on, the report of it, and those of its groups that are known before training."""
    if recipe.streaming:
        stream = GroupStream(recipe, tokenizer)
        return stream, stream.report, stream.first
    groups, report = load_groups(recipe, tokenizer, recipe.dataset, "train")
    return groups, report, groups


def _evaluate_the_end(trainer: PreferenceTrainer) -> None:
    """`do_eval: true`, as published: the model that is saved is evaluated, whatever eval_steps says."""
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if trainer.state.global_step not in evaluated:
        trainer.evaluate()


def build_arguments(recipe: Recipe) -> PreferenceArguments:
    """`TrainingArguments` with the recipe's global batch for this number of processes."""
    batch = resolve_batch(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    warning = bf16_guard(recipe, device_without_bf16(bool(recipe.training.get("use_cpu"))))
    if warning is not None:
        logger.warning(warning)
    given = {
        **recipe.training,
        "device_map": recipe.device_map,
        "report_to": usable_trackers(recipe.training["report_to"]),
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
    }
    if recipe.torch_dtype == "float16":
        if not torch.cuda.is_available():
            raise RecipeError("torch_dtype: float16 needs a GPU. Use bfloat16 or float32 on this machine.")
        given["fp16"] = True
    given.setdefault("disable_tqdm", True)  # TerminalProgress shows more
    token = given.pop("hub_token", None)
    if token:  # from here it goes into no file: neither the arguments of a checkpoint nor the recipe of the run
        os.environ["HF_TOKEN"] = str(token)
    try:
        return PreferenceArguments(**given)
    except (ValueError, TypeError, ImportError) as cause:
        raise RecipeError(f"{recipe.origin}: {str(cause).splitlines()[0]}") from cause


def _check_fits(
    model: Any, name: str | None, tokenizer: PreTrainedTokenizerBase, groups: Sequence[TokenizedGroup]
) -> None:
    check_fits(model.config, shape_of(model.get_input_embeddings().weight)[0], name, tokenizer, groups)


def _announce(recipe: Recipe, report: TokenizationReport, trainer: PreferenceTrainer) -> None:
    logger.info("Objective: %s", describe_objective(recipe))
    if trainer.loss.objective.needs_reference:
        live = trainer.reference
        logger.info("Reference: %s.", "log-probs computed before training" if live is None else live.describe())
    logger.info("Data%s: %s", " (first rows of the stream)" if recipe.streaming else "", report)
    batch = trainer.args.train_batch_size * trainer.args.world_size
    budget, road = trainer.cut.max_tokens, trainer.model.road
    logger.info("Steps of %d groups, micro-batches of up to %s tokens, %s road.", batch, budget, road)
    if trainer.args.world_size > 1:
        shares = trainer.uneven_share()
        dealt = "" if shares is None else f", the fullest has {shares:.1%} more tokens of a step than the mean one"
        logger.info("Engine: %s over %d processes%s.", trainer.engine, trainer.args.world_size, dealt)


def _summary(
    recipe: Recipe, trainer: PreferenceTrainer, report: TokenizationReport, done_before: int, loop: float, total: float
) -> dict[str, Any]:
    records = read_log(Path(recipe.output_dir) / LOG)
    metrics = {}
    for record in records:
        metrics.update(record)
    for key in ("step", "seconds", "epoch"):
        metrics.pop(key, None)
    steps = trainer.state.global_step
    batch = trainer.args.train_batch_size * trainer.args.world_size
    streamed = trainer.train_dataset.counts if recipe.streaming else None
    rows = steps * batch if streamed else min(steps * batch, round(report.rows * trainer.state.epoch))
    groups = rows * (steps - done_before) / max(steps, 1)
    if streamed:
        (logger.warning if streamed.skipped.total else logger.info)("Streamed: %s", streamed)
    return {
        "objective": describe_objective(recipe),
        "metrics": metrics,
        "steps": steps,
        "rows": streamed.groups if streamed else report.rows,
        "data": {**report.to_dict(), **(streamed.to_dict() if streamed else {})},
        "seconds_total": round(total, 3),
        "train_seconds": round(loop, 3),
        "groups_per_second": round(groups / loop, 3),
        "tokens_total": trainer.state.num_input_tokens_seen,
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "road": trainer.model.road,
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "versions": {
            "python": platform.python_version(),
            "preftune": __version__,
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
        },
    }


def write_run_files(recipe: Recipe, folder: Path, summary: dict[str, Any]) -> None:
    """summary.json, plots and the model card of a finished run."""
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    plot_log(read_log(folder / LOG), folder / "plots")
    write_card(recipe, folder, summary)


def quiet_transformers() -> None:
    """Leave transformers' warnings on and its progress bars and notes off."""
    hf_logging.set_verbosity_warning()
    hf_logging.disable_progress_bar()
