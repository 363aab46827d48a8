"""`PreferenceTrainer`: transformers' Trainer, driven a whole optimizer step at a time.

Users keep `TrainingArguments`, callbacks, trackers, schedulers and engines. The meaning of a step is in `step.py`;
what is overridden here is listed in `OVERRIDDEN`, which a test asserts against the installed Trainer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from preftune.data.plan import Cut
from preftune.errors import CheckpointError, RecipeError, TrainingError
from preftune.model.load import disable_dropout
from preftune.model.policy import to_policy
from preftune.objectives import load_objective
from preftune.objectives.base import Objective
from preftune.train.checkpoint import MANIFEST, STAGING, publish, seal, step_of
from preftune.train.loader import StepLoader, StepSource, open_step, step_loader
from preftune.train.master import MasterAdamW
from preftune.train.metrics import MetricSums
from preftune.train.step import StepLoss, micro_batch_loss, step_counts
from preftune.types import Origin, Step, TokenizedGroup

logger = logging.getLogger(__name__)
OVERRIDDEN = frozenset(
    "get_train_dataloader get_eval_dataloader get_batch_samples training_step evaluation_loop log floating_point_ops"
    " _track_num_input_tokens _save_checkpoint _get_output_dir _push_from_checkpoint _load_optimizer_and_scheduler"
    " _load_rng_state create_accelerator_and_postprocess create_optimizer train _get_grad_norm".split()
)
EVAL_STEP_GROUPS = 256  # groups planned and packed together during evaluation


@dataclass
class PreferenceArguments(TrainingArguments):
    """`TrainingArguments` for whole-step training.

    `per_device_train_batch_size x gradient_accumulation_steps x processes` is the global batch, as published. It is
    folded into the first factor here, because one item of the loader is one optimizer step.
    """

    def __post_init__(self) -> None:
        self.per_device_train_batch_size *= self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False  # it hides the NaN and trains on
        self.ddp_find_unused_parameters = False
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True  # under torchrun without it, ranks train apart and exit 0
        super().__post_init__()
        if self.n_gpu > 1:
            raise RecipeError(
                f"{self.n_gpu} GPUs are visible to one process. Start one process a GPU (accelerate or torchrun), "
                "or set CUDA_VISIBLE_DEVICES to one of them."
            )


class PreferenceTrainer(Trainer):
    """Train a causal language model on groups of responses.

    Args:
        model: a transformers model; it becomes a policy in place (`preftune.model.policy.to_policy`).
        args: `PreferenceArguments`; plain `TrainingArguments` are not enough, the batch must be folded.
        objective: an `Objective`, or its name for the published defaults.
        train_dataset, eval_dataset: tokenized groups.
        processing_class: the tokenizer, saved beside the weights.
        sft_weight, sft_normalization: see `StepLoss`.
        cut: how a step is cut into micro-batches; changes speed and memory, never the result.
        road: `auto`, `packed` or `padded`.
        share_prompt: False repeats the prompt before every response.
        keep_dropout: leave the model's dropout on.
        master_weights: keep float32 masters of low-precision weights.
        kwargs: what `Trainer` takes: callbacks, optimizers, ...
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: PreferenceArguments,
        *,
        objective: Objective | str = "simpo",
        train_dataset: Sequence[TokenizedGroup],
        eval_dataset: Sequence[TokenizedGroup] | None = None,
        sft_weight: float = 0.0,
        sft_normalization: str = "token",
        cut: Cut | None = None,
        road: str = "auto",
        share_prompt: bool = True,
        keep_dropout: bool = False,
        master_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        built = load_objective(objective) if isinstance(objective, str) else objective
        self.loss = StepLoss(built, sft_weight, sft_normalization)
        self.cut = cut or Cut(max_tokens=default_micro_batch_tokens(args.device))
        self.share_prompt, self.master_weights = share_prompt, master_weights
        self.metrics = MetricSums()
        self.window_start = time.perf_counter()
        self.staging = False
        self.unchecked: list[tuple[Tensor, tuple[Origin, ...]]] = []
        self.last_grad_norm: Tensor | float | None = None
        if not keep_dropout:
            disable_dropout(model)
        policy = self._checked_policy(model, args, road)
        super().__init__(policy, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)

    @staticmethod
    def _checked_policy(model: PreTrainedModel, args: PreferenceArguments, road: str) -> PreTrainedModel:
        """The preflight runs where training will run: on its device, under its autocast."""
        if args.deepspeed is None and not args.fsdp:
            model.to(args.device)
        low = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, low, enabled=args.bf16 or args.fp16):
            return to_policy(model, road)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        self.unchecked, self.last_grad_norm = [], None
        self.metrics, self.window_start = MetricSums(), time.perf_counter()
        if isinstance(resume_from_checkpoint, str):
            self._check_same_run(Path(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._refuse_non_finite()
        return result

    # data

    def _source(self, groups: Sequence[TokenizedGroup], global_batch: int, seed: int | None) -> StepSource:
        args = self.args
        padded = self.model.road == "padded"
        return StepSource(
            groups, global_batch, self.cut, seed, args.process_index, args.world_size, self.share_prompt, padded
        )

    def get_train_dataloader(self) -> StepLoader:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        global_batch = self.args.train_batch_size * self.args.world_size
        return step_loader(self._source(self.train_dataset, global_batch, seed), self.args.dataloader_num_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        groups = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        groups = self.eval_dataset if groups is None else groups
        if groups is None:
            raise RecipeError("Evaluation needs an eval_dataset.")
        return step_loader(self._source(groups, EVAL_STEP_GROUPS * self.args.world_size, seed=None))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: Any
    ) -> tuple[list[Step], None]:
        return [open_step(item) for item in islice(epoch_iterator, num_batches)], None

    # one optimizer step

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> Tensor:
        self._refuse_non_finite()
        model.train()
        accelerator, device = self.accelerator, self.args.device
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        every = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        counts, ranks = step_counts(inputs), accelerator.num_processes
        total = torch.zeros((), device=device)
        for number, batch in enumerate(inputs.micro_batches):
            batch = batch.to(device)
            last = number == len(inputs.micro_batches) - 1
            accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last or deepspeed or every else accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss, policy = micro_batch_loss(model, batch, self.loss, counts)
                # engines average over ranks; the step's loss is a sum of shares
                accelerator.backward(loss * ranks, **({"scale_wrt_gas": False} if deepspeed else {}))
            total += loss.detach() * ranks
            self.metrics.add(batch, policy, self.loss)
            self.unchecked.append((policy.sums, batch.origins))
        return total

    def _refuse_non_finite(self) -> None:
        """Stop on a log-prob or gradient that is not a number. Reads what the last step left behind."""
        unchecked, self.unchecked = self.unchecked, []
        norm, self.last_grad_norm = self.last_grad_norm, None
        if not unchecked:
            return
        if torch.stack([sums.sum() for sums, _ in unchecked]).isfinite().all():
            if norm is not None and not self.args.fp16 and not math.isfinite(norm):  # fp16 skips such steps
                raise TrainingError(
                    f"The gradient became non-finite at step {self.state.global_step}, with finite log-probs. Lower "
                    "the learning rate, or use float32 or bf16; checkpoints before this step are intact."
                )
            return
        rows = [str(rows[i]) for sums, rows in unchecked for i in (~sums.isfinite()).any(1).nonzero()[:, 0].tolist()]
        raise TrainingError(
            f"Log-probs became non-finite at step {self.state.global_step}, in {len(rows)} groups: "
            f"{', '.join(rows[:5])}. Lower the learning rate or look at these rows; the last checkpoint is intact."
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.last_grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.last_grad_norm

    # logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.metrics.sums is not None:
            self._refuse_non_finite()
            now = time.perf_counter()
            tokens = int(self._summed(torch.tensor([self.metrics.tokens], dtype=torch.float64)).item())
            self.state.num_input_tokens_seen += tokens
            drained = self.metrics.drain(self._summed)
            logs |= {name: value for name, value in drained.items() if name != "loss"}
            logs["tokens_per_second"] = tokens / max(now - self.window_start, 1e-9)
            self.window_start = now
        super().log(logs, start_time)

    def _summed(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum")

    def _track_num_input_tokens(self, inputs: Step) -> None:
        """Counted at log time, without a read of the device in every step."""

    def floating_point_ops(self, inputs: Step) -> int:
        body = self.model.num_parameters(exclude_embeddings=True)
        return 6 * body * sum(batch.tokens for batch in inputs.micro_batches)

    # evaluation

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: StepLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        was_training = self.model.training
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        sums = MetricSums()
        window = time.perf_counter()
        for step in map(open_step, dataloader):
            counts = step_counts(step)
            for batch in step.micro_batches:
                batch = batch.to(self.args.device)
                with self.compute_loss_context_manager():
                    _, policy = micro_batch_loss(model, batch, self.loss, counts)
                sums.add(batch, policy, self.loss)
        model.train(was_training)
        self.window_start += time.perf_counter() - window  # training throughput leaves evaluation out
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in sums.drain(self._summed).items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    # optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        low = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters() if p.requires_grad)
        if low and self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            if not self.master_weights:
                logger.warning(
                    "Weights are trained in low precision without a float32 master (master_weights: false): at a "
                    "learning rate of %g most of them will not move.",
                    self.args.learning_rate,
                )
            elif issubclass(kind, torch.optim.AdamW):
                self.optimizer_cls_and_kwargs = MasterAdamW, kwargs
            else:
                raise RecipeError(
                    f"optim {self.args.optim!r} cannot keep float32 masters. Use adamw_torch or torch_dtype: float32."
                )
        return super().create_optimizer(model)

    # checkpoints

    @contextmanager
    def _staged(self) -> Iterator[None]:
        self.staging = True
        try:
            yield
        finally:
            self.staging = False

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial)
        return os.path.join(run, STAGING) if self.staging else run

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.staging:  # uploads in the background from the folder it is given: only a published one
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._refuse_non_finite()
        started = time.perf_counter()
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)  # what a crash left
        self.accelerator.wait_for_everyone()
        with self._staged():
            super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint:  # written with the staging path
            self.state.best_model_checkpoint = self.state.best_model_checkpoint.replace(f"{os.sep}{STAGING}", "")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(run, name)
        self.accelerator.wait_for_everyone()
        self.window_start += time.perf_counter() - started  # as evaluation, not training throughput
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _publish(self, run: Path, name: str) -> None:
        staged = run / STAGING / name
        if self.state.best_model_checkpoint:
            self.state.save_to_json(str(staged / "trainer_state.json"))
        seal(staged, {"step": self.state.global_step, "run": self._identity()})
        publish(staged, run / name)
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=False,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._require(checkpoint, "scheduler.pt")
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # they keep theirs in shards and check themselves
            self._require(checkpoint, "optimizer.pt")
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        ranked = self.args.world_size > 1
        self._require(checkpoint, f"rng_state_{self.args.process_index}.pth" if ranked else "rng_state.pth")
        super()._load_rng_state(checkpoint)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resume to go on with the same run."""
        return {
            "data": self._data_hash,
            "rows": len(self.train_dataset),
            "global_batch": self.args.train_batch_size * self.args.world_size,
            "seed": self.args.seed,
            "objective": repr(self.loss),
        }

    @cached_property
    def _data_hash(self) -> str:
        """Of all token ids, with the lengths that tell them apart; seconds for a large set, so made once."""
        digest = hashlib.sha256()
        for group in self.train_dataset:
            parts = [group.prompt_ids, *group.response_ids]
            digest.update(array("q", [len(parts), *map(len, parts)]).tobytes())
            for ids in parts:
                digest.update(array("q", ids).tobytes())
        return digest.hexdigest()

    def _check_same_run(self, checkpoint: Path) -> None:
        """Refuse to go on with other data, another batch or another objective than the checkpoint was made with."""
        manifest = checkpoint / MANIFEST
        if not manifest.is_file():
            return  # not one of ours; Trainer decides
        saved = json.loads(manifest.read_text(encoding="utf-8")).get("run", {})
        now = self._identity()
        changed = [
            f"{key} {saved[key]!r} then, {now[key]!r} now" for key in now if key in saved and saved[key] != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"'{checkpoint}' is of another run: {'; '.join(changed)}. Use the recipe that made it, or start afresh "
                "with model_name_or_path set to it."
            )

    def _require(self, checkpoint: str | None, name: str) -> None:
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            step = step_of(Path(checkpoint))
            raise CheckpointError(
                f"'{checkpoint}' has no {name}: going on from step {step} without it would be another run. "
                "It was saved with save_only_model, or by another number of processes."
            )

    # engines

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if asked != self.accelerator.num_processes:
            raise TrainingError(
                f"{asked} processes were asked for and {self.accelerator.num_processes} take part; "
                "the launcher and the trainer disagree about the world. Start with torchrun or accelerate launch."
            )


def default_micro_batch_tokens(device: torch.device) -> int:
    """Packed tokens of a micro-batch when the recipe names none."""
    return 4096 if device.type == "cpu" else 8192
