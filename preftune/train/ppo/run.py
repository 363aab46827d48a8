"""A ppo recipe run from end to end: load, train, and leave the run folder.

recipe.yaml  log.jsonl  summary.json  samples/step-N.md  plots/*.png  README.md  checkpoint-N/  and the policy
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from preftune import __version__
from preftune.data.plan import Cut
from preftune.errors import Interrupted
from preftune.objectives.ppo import PPO
from preftune.recipe import Recipe, describe_objective
from preftune.recipe.guards import guard_rails
from preftune.train.arguments import PreferenceArguments, default_micro_batch_tokens
from preftune.train.checkpoint import LOG, open_run, resolve_resume, step_of
from preftune.train.identity import run_settings
from preftune.train.interrupt import SaveOnInterrupt
from preftune.train.models import check_fits
from preftune.train.ppo.judged import JudgedReward
from preftune.train.ppo.loop import PPOTrainer
from preftune.train.ppo.models import Models, load_models
from preftune.train.ppo.prompts import Prompt, load_prompts
from preftune.train.ppo.sampling import ending_tokens
from preftune.train.ranks import leave_at_exit
from preftune.train.record import RunLog, TerminalProgress, peak_memory_gib, read_log
from preftune.train.tokenizer import load_run_tokenizer
from preftune.train.trackers import guard
from preftune.types import TokenizedGroup

logger = logging.getLogger(__name__)


def run_ppo(recipe: Recipe, args: PreferenceArguments, callbacks: Iterable[TrainerCallback] = ()) -> dict[str, Any]:
    """Train by a ppo recipe and return the summary; the run folder lacks only what every run gets at its end.

    Raises:
        PreftuneError: the recipe, the data, a model or a checkpoint is wrong; nothing is written before all are read.
        Interrupted: the user or the system stopped the run; a checkpoint was saved.
    """
    started = time.perf_counter()
    ppo = recipe.build_objective()
    assert isinstance(ppo, PPO)
    tokenizer, new_tokens = load_run_tokenizer(recipe)
    prompts = load_prompts(recipe, tokenizer, recipe.dataset, "train")
    held_out = []
    if recipe.evaluates:
        held_out = load_prompts(recipe, tokenizer, recipe.eval_dataset or recipe.dataset, "test")
    set_seed(args.seed)
    models = load_models(recipe, ppo, tokenizer, new_tokens, args)
    _check_room(recipe, ppo, models, tokenizer, [*prompts, *held_out])
    batch = args.train_batch_size * args.world_size
    for warning in guard_rails(recipe, models.policy.num_parameters(), batch, args.world_size):
        logger.warning(warning)
    folder = Path(recipe.output_dir)
    resume = resolve_resume(args.resume_from_checkpoint, folder)
    progress, interrupt = TerminalProgress("ppo"), SaveOnInterrupt()
    trackers = [kind() for kind in get_reporting_integration_callbacks(args.report_to)]
    guard(trackers)
    trainer = PPOTrainer(
        ppo,
        models,
        args,
        prompts=prompts,
        held_out=held_out,
        tokenizer=tokenizer,
        ends=ending_tokens(models.policy, tokenizer, ppo.stop_token),
        cut=Cut(max_tokens=recipe.micro_batch_tokens or default_micro_batch_tokens(args.device)),
        master_weights=recipe.master_weights,
        rescue_minutes=recipe.rescue_minutes,
        on_nonfinite=recipe.on_nonfinite,
        settings=_settings(recipe, args),
        callbacks=[RunLog(folder), progress, interrupt, *trackers, *callbacks],
    )
    if resume is not None:
        trainer.check_same_run(resume)
    trainer.accelerator.wait_for_everyone()  # all have looked for the checkpoint before anything is moved
    if trainer.state.is_world_process_zero:
        open_run(folder, resume)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        _announce(recipe, trainer)
    loop = time.perf_counter()
    done_before = 0 if resume is None else step_of(resume)
    try:
        state = trainer.train(resume)
    finally:
        progress.close()
        interrupt.close()
        if isinstance(models.reward, JudgedReward):
            models.reward.close()
    loop = time.perf_counter() - loop
    leave_at_exit()
    if interrupt.asked and state.global_step < state.max_steps:
        again = f"preftune train {folder}/recipe.yaml resume_from_checkpoint=true"
        raise Interrupted(f"saved; go on with: {again}", interrupt.exit_code)
    if state.is_world_process_zero:
        trainer.save_model(folder)
        if hasattr(models.policy, "peft_config"):
            from preftune.model.lora import save_plain_lora  # the extra `lora`

            save_plain_lora(models.policy, folder)
    return _summary(recipe, trainer, done_before, loop, time.perf_counter() - started)


def _settings(recipe: Recipe, args: PreferenceArguments) -> dict[str, Any]:
    """Without what is no part of a run: where its judge is, and how to get in there."""
    free = {field.name for field in fields(PPO) if not field.repr}
    return {key: value for key, value in run_settings(recipe, args).items() if key not in free}


def _check_room(
    recipe: Recipe, ppo: PPO, models: Models, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]
) -> None:
    """Policy and value model have a position for the longest prompt with a response of full length."""
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    group = TokenizedGroup(longest.ids, [[0] * ppo.response_length], longest.origin)
    for model, name in (
        (models.policy, recipe.model_name_or_path),
        (models.value, ppo.reward_model_name_or_path or recipe.model_name_or_path),
    ):
        check_fits(model.config, model.get_input_embeddings().weight.shape[0], name, tokenizer, [group])


def _announce(recipe: Recipe, trainer: PPOTrainer) -> None:
    logger.info("Objective: %s", describe_objective(recipe))
    logger.info("Reference: %s.", trainer.models.reference.describe())
    logger.info(
        "%d prompts (%d held out); a step samples %d responses of up to %d tokens, and takes %d x %d optimizer steps.",
        len(trainer.prompts),
        len(trainer.held_out),
        trainer.rollout_size,
        trainer.ppo.response_length,
        trainer.ppo.num_ppo_epochs,
        trainer.ppo.num_mini_batches,
    )


def _summary(recipe: Recipe, trainer: PPOTrainer, done_before: int, loop: float, total: float) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for record in read_log(Path(recipe.output_dir) / LOG):
        metrics.update(record)
    for key in ("step", "seconds", "epoch"):
        metrics.pop(key, None)
    steps = trainer.state.global_step
    base = trainer.models.policy
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    return {
        "objective": describe_objective(recipe),
        "metrics": metrics,
        "steps": steps,
        "rows": len(trainer.prompts),
        "episodes": steps * trainer.rollout_size,
        "seconds_total": round(total, 3),
        "train_seconds": round(loop, 3),
        "groups_per_second": round((steps - done_before) * trainer.rollout_size / max(loop, 1e-9), 3),
        "tokens_total": trainer.tokens_seen,
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "road": base.road,
        "device": str(trainer.args.device),
        "processes": trainer.ranks,
        "versions": {
            "python": platform.python_version(),
            "preftune": __version__,
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
        },
    }
