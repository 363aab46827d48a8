"""The loop of PPO on accelerate: roll out, update, and at their steps log, evaluate and save.

A step is one rollout with all its updates; `max_steps`, `logging_steps`, `eval_steps`, `save_steps` and the schedule
count them. Callbacks are those of transformers' Trainer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    get_scheduler,
)
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from preftune.data.plan import Cut, epoch_order
from preftune.errors import RecipeError, TrainingError
from preftune.model.load import one_line
from preftune.model.value_head import base_of
from preftune.objectives.ppo import PPO
from preftune.train.arguments import PreferenceArguments
from preftune.train.identity import hash_groups, hash_weights
from preftune.train.master import MasterAdamW
from preftune.train.ppo.guard import UpdateGuard
from preftune.train.ppo.models import Models
from preftune.train.ppo.prompts import Prompt
from preftune.train.ppo.rollout import Rollout, roll_out, targets_of
from preftune.train.ppo.samples import evaluate, write_samples
from preftune.train.ppo.sampling import Sampling
from preftune.train.ppo.saving import load_checkpoint, save_checkpoint
from preftune.train.ppo.update import Updater
from preftune.train.redo import is_out_of_memory
from preftune.train.rescue import RescueClock
from preftune.train.saving import check_same_run

logger = logging.getLogger(__name__)


class PPOTrainer:
    """Trains a policy and its value model on the policy's own responses.

    Args:
        ppo: the settings.
        models: on the device of `args`.
        args: `train_batch_size` prompts a process make an optimizer step, `num_mini_batches` times that a rollout.
        prompts, held_out: what is trained on, and what is evaluated on (may be empty).
        ends: the tokens that end a response.
        cut: of an optimizer step into micro-batches.
        master_weights: keep float32 masters of low-precision weights.
        rescue_minutes: between checkpoints by the clock (`preftune.train.rescue`); 0 takes none.
        on_nonfinite: `stop` at an update that is not finite, or `skip` it (`preftune.train.nonfinite`).
        settings: what a resumed run must have the same, beside data and objective.
    """

    def __init__(
        self,
        ppo: PPO,
        models: Models,
        args: PreferenceArguments,
        *,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        ends: tuple[int, ...],
        cut: Cut,
        master_weights: bool = True,
        rescue_minutes: float = 15,
        on_nonfinite: str = "stop",
        settings: dict[str, Any] | None = None,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        self.ppo, self.models, self.args, self.tokenizer = ppo, models, args, tokenizer
        self.prompts, self.held_out, self.settings = prompts, held_out, settings or {}
        self.asked_tokens = cut.max_tokens  # of a micro-batch, before memory had its say
        self.guard, self.clock = UpdateGuard(self, on_nonfinite), RescueClock(rescue_minutes, args.device)
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=args.use_cpu)
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.sampling = Sampling(ppo.response_length, ppo.temperature, ends, ppo.local_rollout_forward_batch_size)
        self.local_rollout = args.train_batch_size * ppo.num_mini_batches
        self.rollout_size = self.local_rollout * self.ranks
        self.parameters = [p for m in (models.policy, models.value) for p in m.parameters() if p.requires_grad]
        if args.gradient_checkpointing:
            for model in (models.policy, models.value):
                base_of(model).gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
                base_of(model).enable_input_require_grads()
        self.state = TrainerState(
            is_local_process_zero=self.accelerator.is_local_main_process,
            is_world_process_zero=self.accelerator.is_main_process,
        )
        self.control = TrainerControl()
        self.state.max_steps = self._steps()
        self.state.num_train_epochs = math.ceil(args.num_train_epochs)
        self.state.compute_steps(args, self.state.max_steps)
        raw = self._build_optimizer(master_weights)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=raw,
            num_warmup_steps=args.get_warmup_steps(self.state.max_steps),
            num_training_steps=self.state.max_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        self.optimizer = self.accelerator.prepare_optimizer(raw)
        self.updater = Updater(
            ppo,
            *(self._wrapped(model) for model in (models.policy, models.value)),
            self.optimizer,
            self.accelerator,
            parameters=self.parameters,
            cut=cut,
            max_grad_norm=args.max_grad_norm,
            summed=self._summed,
            guard=self.guard,
        )
        self.callbacks = CallbackHandler(  # the clock after all others, which may ask for a checkpoint too
            [DefaultFlowCallback, *callbacks, self.clock], models.policy, tokenizer, self.optimizer, self.scheduler
        )
        self.window: list[dict[str, float]] = []
        self.tokens_seen = 0
        self.newest: tuple[Sequence[Prompt], Rollout] | None = None

    # --- set up

    def _steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return max(1, math.ceil(self.args.num_train_epochs * len(self.prompts) / self.rollout_size))

    def _wrapped(self, model: Any) -> Any:
        return self.accelerator.prepare_model(model) if self.ranks > 1 else model

    def _build_optimizer(self, master_weights: bool) -> torch.optim.Optimizer:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, self.models.policy)
        low = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters)
        if low and master_weights:
            if not issubclass(kind, torch.optim.AdamW):
                raise RecipeError(
                    f"optim {self.args.optim!r} cannot keep float32 masters. Use adamw_torch or torch_dtype: float32."
                )
            kind = MasterAdamW
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]  # norms and biases
        groups = [
            {"params": decayed, "weight_decay": self.args.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return kind([group for group in groups if group["params"]], **kwargs)

    def _summed(self, values: Tensor) -> Tensor:
        return values if self.ranks == 1 else self.accelerator.reduce(values, reduction="sum")

    # --- the loop

    def train(self, checkpoint: Path | None = None) -> TrainerState:
        """All steps, or those that are left after `checkpoint`."""
        if checkpoint is not None:
            load_checkpoint(self, checkpoint)
        else:
            torch.manual_seed(self.args.seed + self.rank)  # each process samples for itself
        started, first = time.perf_counter(), self.state.global_step
        self.control = self.callbacks.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start and not first and self.held_out:
            self._evaluate()
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._one_step(started, first)
        if self.args.do_eval and self.held_out and not self._evaluated_here() and not self._interrupted():
            self._evaluate()
        self._show_training()
        self.control = self.callbacks.on_train_end(self.args, self.state, self.control)
        return self.state

    def _one_step(self, started: float, first: int) -> None:
        before = self.state.epoch or 0.0
        self.control = self.callbacks.on_step_begin(self.args, self.state, self.control)
        figures = self._update(self._next_prompts())
        self.state.global_step += 1
        self.state.epoch = self.state.global_step * self.rollout_size / len(self.prompts)
        done = self.state.global_step - first
        self.window.append(
            {
                **figures,
                "episode": self.state.global_step * self.rollout_size,
                "eps": done * self.rollout_size / (time.perf_counter() - started),
            }
        )
        self.control = self.callbacks.on_step_end(self.args, self.state, self.control)
        if int(self.state.epoch) > int(before) or self.state.global_step == self.state.max_steps:
            self.control = self.callbacks.on_epoch_end(self.args, self.state, self.control)
        if self.control.should_log:
            self._log_window()
        best = False
        if self.control.should_evaluate and self.held_out:
            best = self._evaluate()
        if self.control.should_save or (best and self.args.save_strategy == "best"):
            save_checkpoint(self, best)
            self.control = self.callbacks.on_save(self.args, self.state, self.control)

    def _next_prompts(self) -> list[Prompt]:
        """This process's part of the rollout; the order of the prompts is a function of seed and pass."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        first = self.state.global_step * self.rollout_size + self.rank * self.local_rollout
        count = len(self.prompts)
        places = range(first, first + self.local_rollout)
        return [self.prompts[epoch_order(count, seed, place // count)[place % count]] for place in places]

    def _update(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        rollout = self._rolled_out(prompts)
        rate = float(self.scheduler.get_last_lr()[0])
        self.newest = prompts, rollout
        updated = self.updater.run(rollout, targets_of(rollout, self.ppo, self._summed))
        self.scheduler.step()
        figures = rollout.to_metrics(self.ppo)
        sums = self._summed(torch.stack([*(value.sum() for value in figures.values()), rollout.mask.sum()]))
        *means, _ = (sums / self.rollout_size).tolist()
        self.tokens_seen += int(sums[-1].item())
        found = dict(zip(figures, means, strict=True))
        found["val/num_eos_tokens"] = found.pop("ended") * self.rollout_size
        if updated:  # not all steps were left out
            updated["loss"] = updated["loss/policy_avg"] + self.ppo.vf_coef * updated["loss/value_avg"]
        return {**found, **updated, "lr": rate}

    def _rolled_out(self, prompts: Sequence[Prompt]) -> Rollout:
        try:
            with self.accelerator.autocast():
                return roll_out(self.models, prompts, self.tokenizer, self.ppo, self.sampling)
        except RuntimeError as cause:
            if not is_out_of_memory(cause):
                raise
            raise TrainingError(
                f"Out of memory in step {self.state.global_step + 1}, where responses are sampled, "
                f"{self.sampling.batch} together ({one_line(cause)}). Set a smaller local_rollout_forward_batch_size, "
                "response_length or max_prompt_length."
            ) from cause

    # --- logs and evaluation

    def _log_window(self) -> None:
        """Means over the steps since the last line that have the figure; what counts on is as it stands."""
        newest = self.window[-1]
        names = dict.fromkeys(name for figures in self.window for name in figures)
        found = {name: [figures[name] for figures in self.window if name in figures] for name in names}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        means |= {name: newest[name] for name in ("lr", "episode", "eps")}
        self.window.clear()
        self._log(means)

    def _log(self, figures: dict[str, float]) -> None:
        line = {**figures, "epoch": self.state.epoch or 0.0}
        self.state.log_history.append({**line, "step": self.state.global_step})
        self.control = self.callbacks.on_log(self.args, self.state, self.control, line)

    def _evaluate(self) -> bool:
        """Sample for the held-out prompts, log and show; returns whether it is the best figure so far."""
        mine = self.held_out[self.rank :: self.ranks]
        with self.accelerator.autocast():
            figures, rollout = evaluate(
                self.models,
                mine,
                self.tokenizer,
                self.ppo,
                self.sampling,
                seed=self.args.seed + self.rank,
                summed=self._summed,
            )
        self._log(figures)
        if rollout is not None and self.state.is_world_process_zero:
            write_samples(Path(self.args.output_dir), self.state.global_step, mine, rollout)
        self.control = self.callbacks.on_evaluate(self.args, self.state, self.control, figures)
        return self._is_best(figures)

    def _show_training(self) -> None:
        """Samples of a run without evaluations: those that its last step was taken on."""
        evaluated = any("eval_objective/scores" in line for line in self.state.log_history)
        if self.newest is not None and not evaluated and self.state.is_world_process_zero:
            write_samples(Path(self.args.output_dir), self.state.global_step - 1, *self.newest)

    def _is_best(self, figures: dict[str, float]) -> bool:
        name = self.args.metric_for_best_model
        if name is None:
            return False
        value = figures.get(name if name.startswith("eval_") else f"eval_{name}")
        if value is None:
            known = ", ".join(key.removeprefix("eval_") for key in figures)
            raise RecipeError(f"'metric_for_best_model' must be one of {known}, found {name!r}.")
        larger = self.args.greater_is_better is not False
        best = self.state.best_metric
        if best is not None and (value <= best if larger else value >= best):
            return False
        self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        return True

    def _evaluated_here(self) -> bool:
        step = self.state.global_step
        return any(line["step"] == step and "eval_objective/scores" in line for line in self.state.log_history)

    def _interrupted(self) -> bool:
        return self.state.global_step < self.state.max_steps

    # --- checkpoints

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resume to go on with the same run."""
        return {
            "data": self._data_hash,
            "rows": len(self.prompts),
            "global_batch": self.rollout_size,
            "seed": self.args.seed,
            "objective": repr(self.ppo),
            "reference": self._reference_hash,
        }

    @cached_property
    def _reference_hash(self) -> str:
        return hash_weights(self.models.reference.state_dict())

    @cached_property
    def _data_hash(self) -> str:
        return hash_groups(prompt.answered([0]) for prompt in self.prompts)

    def save_model(self, folder: Path) -> None:
        """The policy (or its adapter) and the tokenizer, in transformers' files."""
        self.models.policy.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def check_same_run(self, checkpoint: Path) -> None:
        """Refuse to go on with other data, another batch or other settings than the checkpoint was made with."""
        check_same_run(checkpoint, self.identity(), self.settings, self.ranks)
