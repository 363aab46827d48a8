"""`PreferenceTrainer`: transformers' Trainer, driven a whole optimizer step at a time.

Users keep `TrainingArguments`, callbacks, trackers, schedulers and engines. The meaning of a step is in `step.py`;
what is overridden here is listed in `OVERRIDDEN`, which a test asserts against the installed Trainer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from preftune.data.plan import Cut
from preftune.errors import RecipeError
from preftune.model.head_gradient import straight_into_grad
from preftune.model.heads import to_scorer
from preftune.model.load import disable_dropout
from preftune.model.policy import to_policy
from preftune.model.reference import FrozenModel, Reference, own_reference
from preftune.model.sharding import lent
from preftune.objectives import load_objective
from preftune.objectives.base import Baseline, Objective, Reads
from preftune.train.arguments import PreferenceArguments, default_micro_batch_tokens
from preftune.train.best import CheckMetric
from preftune.train.checkpoint import resolve_resume
from preftune.train.engines import DDP, ONE, asked_engine, first_says, shard_frozen
from preftune.train.identity import hash_groups, hash_weights
from preftune.train.layers import place_model, put_liger_in, settle_layers
from preftune.train.loader import StepLoader, StepSource, check_prompts, open_step, step_loader
from preftune.train.metrics import MetricSums
from preftune.train.moments import MomentType
from preftune.train.nonfinite import FiniteGuard, check_action
from preftune.train.passes import RunningMean, check_row_weights, prepare_step
from preftune.train.precompute import default_cache, give_reference_logps
from preftune.train.raw import to_arguments, to_groups
from preftune.train.redo import StepInMemory, kept_tokens
from preftune.train.saving import SealedTrainer
from preftune.train.step import Packing, StepLoss, micro_batch_loss, step_counts
from preftune.train.stream import GroupStream, Mark, StreamSource
from preftune.types import PackedBatch, ResponseLogps, Step, TokenizedGroup

logger = logging.getLogger(__name__)
OVERRIDDEN = frozenset(
    "get_train_dataloader get_eval_dataloader get_batch_samples training_step evaluation_loop log floating_point_ops"
    " _track_num_input_tokens _save_checkpoint _get_output_dir _push_from_checkpoint _load_optimizer_and_scheduler"
    " _load_rng_state create_accelerator_and_postprocess create_optimizer train _get_grad_norm init_hf_repo"
    " push_to_hub create_scheduler save_model _determine_best_metric _finalize_training".split()
)
EVAL_STEP_GROUPS = 256  # groups planned and packed together during evaluation


class PreferenceTrainer(SealedTrainer):
    """Train a causal language model on groups of responses.

    Args:
        model: a transformers model; it becomes a policy in place (`preftune.model.policy.to_policy`).
        args: `PreferenceArguments`, or `TrainingArguments`, whose batch is folded into the same.
        objective: an `Objective`, or its name for the published defaults.
        train_dataset, eval_dataset: a `datasets.Dataset` or rows in the forms of files (TRL's among them), or token
            groups; see `preftune.train.raw`. To train on, a `GroupStream` too.
        processing_class: the tokenizer, saved beside the weights; rows of text need it.
        max_length, max_prompt_length, truncation: of rows of text, as in a recipe.
        sft_weight, sft_normalization: see `StepLoss`.
        reference_model: the reference of an objective that needs one; None takes the model as it is at the start (of a
            fresh adapter the base model, of a trained one the adapter as it is).
        precompute_reference: compute its log-probs before training, and let it leave memory.
        reference_cache: folder of the precomputed log-probs; see `preftune.train.precompute.default_cache`.
        cut: how a step is cut into micro-batches; changes speed and memory, never the result.
        road: `auto`, `packed` or `padded`.
        share_prompt: False repeats the prompt before every response.
        keep_dropout: leave the model's dropout on.
        master_weights, optimizer_state: of low-precision weights and of the moments; see `preftune.train.optimizer`.
        checkpoint_layers: how many of the first layers make their activations again in backward, whatever
            `gradient_checkpointing` says; None leaves it to that.
        rescue_minutes: between checkpoints by the clock (`preftune.train.rescue`); 0 takes none.
        on_nonfinite: `stop` at a step that is not finite, or `skip` it (`preftune.train.nonfinite`).
        kwargs: what `Trainer` takes: callbacks, optimizers, ...
    """

    partner: Any = None  # takes gradients with other trainers (`preftune.train.together`)
    verified: Path | None = None  # the checkpoint of a recipe, whose hashes are read once

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        objective: Objective | str = "simpo",
        train_dataset: Any,
        eval_dataset: Any = None,
        max_length: int | None = 1024,
        max_prompt_length: int | None = None,
        truncation: str = "prompt_then_response",
        sft_weight: float = 0.0,
        sft_normalization: str = "token",
        reference_model: PreTrainedModel | None = None,
        precompute_reference: bool = False,
        reference_cache: str | Path | None = None,
        cut: Cut | None = None,
        road: str = "auto",
        share_prompt: bool = True,
        keep_dropout: bool = False,
        master_weights: bool | str = True,
        optimizer_state: MomentType = "float32",
        checkpoint_layers: int | None = None,
        rescue_minutes: float = 15,
        on_nonfinite: str = "stop",
        **kwargs: Any,
    ) -> None:
        built = load_objective(objective) if isinstance(objective, str) else objective
        args = to_arguments(args)
        self.loss = StepLoss(built, sft_weight, sft_normalization)
        tokenizer = kwargs.get("processing_class")
        limits = {"max_length": max_length, "max_prompt_length": max_prompt_length, "truncation": truncation}
        train_dataset = to_groups(train_dataset, "train_dataset", built, tokenizer, **limits)
        eval_dataset = to_groups(eval_dataset, "eval_dataset", built, tokenizer, **limits)
        self.cut = cut or Cut(max_tokens=default_micro_batch_tokens(args.device))
        self.asked_tokens = None if cut is None else cut.max_tokens  # of a micro-batch, before memory had its say
        self.share_prompt, self.master_weights, self.optimizer_state = share_prompt, master_weights, optimizer_state
        self.metrics, self.running = MetricSums(), RunningMean()
        self.window_start = time.perf_counter()
        self.guard, self.in_memory = FiniteGuard(self, on_nonfinite), StepInMemory(self)
        if not keep_dropout:
            disable_dropout(model)
        self.liger, args.use_liger_kernel = args.use_liger_kernel, False  # the Trainer would put a loss in as well
        policy = self._checked_policy(model, args, road)
        self.reference: Reference | None = None
        super().__init__(policy, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        settle_layers(policy, args, checkpoint_layers, self.compiling)
        self._watch_the_clock(rescue_minutes)
        self.add_callback(CheckMetric(self))
        check_action(self)
        first = self._stream.first if self._stream else self.train_dataset or ()
        for groups in (first, *self._eval_sets().values()):
            check_row_weights(built, groups)
        if built.baseline == Baseline.PROBES:
            for groups in (self.train_dataset, *self._eval_sets().values()):
                check_prompts(groups)
        if not built.needs_reference and (reference_model is not None or precompute_reference):
            raise RecipeError(f"{type(built).__name__} has no reference model. Leave it out.")
        if built.needs_reference:
            self._set_up_reference(reference_model, precompute_reference, reference_cache, road)

    def _checked_policy(self, model: PreTrainedModel, args: PreferenceArguments, road: str) -> PreTrainedModel:
        """The preflight runs where training will run: on its device, under its autocast."""
        if asked_engine(args) in (ONE, DDP):
            place_model(model, args)
        if self.liger:
            put_liger_in(model, args)
        low = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, low, enabled=args.bf16 or args.fp16), lent(model):
            scores = self.loss.objective.reads == Reads.SCORES
            return to_scorer(model, road) if scores else to_policy(model, road)

    def _set_up_reference(
        self, model: PreTrainedModel | None, precompute: bool, cache: str | Path | None, road: str
    ) -> None:
        held = self.is_deepspeed_enabled or self.is_fsdp_enabled  # by an engine, from create_scheduler on
        if model is self.model:
            raise RecipeError("The reference_model is the policy itself. Leave it out: its start is the reference.")
        if model is not None:
            disable_dropout(model)
            self.reference = FrozenModel(self._checked_policy(model, self.args, road))
        else:
            self.reference = own_reference(self.model, copy=not (precompute or held))
        if held:
            self._reference_hash = first_says(hash_weights(self.reference.state_dict()))  # while the weights are whole
        if model is not None and not precompute:
            self.reference.model = shard_frozen(model, self.accelerator)
        if precompute:
            folder = Path(cache).expanduser() if cache else default_cache()
            self._reference_hash = give_reference_logps(self, folder)
            self.reference = None

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> Any:
        """As Trainer's; a checkpoint that is damaged or of another run is refused, as in a recipe."""
        self.metrics, self.running, self.window_start = MetricSums(), RunningMean(), time.perf_counter()
        self.guard.seen, self.guard.skipped = [], 0
        checkpoint = self.verified
        if checkpoint is None or checkpoint != resume_from_checkpoint:
            checkpoint = resolve_resume(resume_from_checkpoint, Path(self.args.output_dir))
        if checkpoint is not None:
            self.check_same_run(checkpoint)
            kept = kept_tokens(checkpoint, self.asked_tokens, self.engine, self.args.world_size)
            self.cut = replace(self.cut, max_tokens=kept or self.cut.max_tokens)
        return super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)

    # data

    @property
    def _stream(self) -> GroupStream | None:
        return self.train_dataset if isinstance(self.train_dataset, GroupStream) else None

    @property
    def _packing(self) -> Packing:
        objective = self.loss.objective
        return Packing(
            self.share_prompt,
            padded=self.model.road == "padded",
            feed_last=objective.reads == Reads.SCORES,
            joints=objective.needs_reference and self.reference is not None,
        )

    def _source(self, groups: Sequence[TokenizedGroup], global_batch: int, seed: int | None) -> StepSource:
        args = self.args
        probes = self.loss.objective.baseline == Baseline.PROBES
        return StepSource(
            groups, global_batch, self.cut, seed, args.process_index, args.world_size, self._packing, probes
        )

    def get_train_dataloader(self) -> StepLoader:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        global_batch = self.args.train_batch_size * self.args.world_size
        if self._stream is not None:
            ranks = {"rank": self.args.process_index, "ranks": self.args.world_size, "packing": self._packing}
            return step_loader(StreamSource(self._stream, global_batch, self.cut, seed, self.args.max_steps, **ranks))
        return step_loader(self._source(self.train_dataset, global_batch, seed), self.args.dataloader_num_workers)

    def uneven_share(self) -> float | None:
        """How much more tokens of a step the fullest process has than the mean one; None of a stream."""
        return None if self._stream else self.get_train_dataloader().dataset.uneven_share()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        groups = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        groups = self.eval_dataset if groups is None else groups
        if groups is None:
            raise RecipeError("Evaluation needs an eval_dataset.")
        objective = self.loss.objective
        if objective.needs_reference and self.reference is None and not all(group.reference for group in groups):
            raise RecipeError(
                f"{type(objective).__name__} needs reference log-probs, and these rows have none: the reference was "
                "precomputed for the eval_dataset given at the start. Evaluate on that one, or keep the reference live."
            )
        return step_loader(self._eval_source(groups))

    def _eval_source(self, groups: Sequence[TokenizedGroup]) -> StepSource:
        return self._source(groups, EVAL_STEP_GROUPS, seed=None)

    def _eval_sets(self) -> dict[str, Sequence[TokenizedGroup]]:
        if self.eval_dataset is None:
            return {}
        return self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: Any
    ) -> tuple[list[Step], None]:
        if self.state.global_step >= self.state.max_steps:  # resumed at the end: the Trainer would take one step more
            self.control.should_training_stop = True
            return [], None
        steps = [open_step(item) for item in islice(epoch_iterator, num_batches)]
        for step in steps:
            check_row_weights(self.loss.objective, step)  # of a stream nothing was known before
        return steps, None

    # one optimizer step

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> Tensor:
        self._check_engine(model)
        model.train()
        self.in_memory.apart = isinstance(model, DistributedDataParallel)
        held = model.module if self.in_memory.apart else model  # gradients are shared when all of them are there
        return self.in_memory(lambda step: self._accumulate(held, step), inputs)

    def _accumulate(self, model: Any, inputs: Step) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        if self.margins is not None:
            self.margins.open(inputs)
        inputs = self._prepared(model, inputs)
        runs = self.loss.objective.baseline == Baseline.RUNNING
        take = self._take_gradients if self.partner is None else self.partner.take_gradients
        taken = zip(inputs.micro_batches, take(model, inputs), strict=True)
        for number, (batch, (loss, policy)) in enumerate(taken):
            total += loss
            output = self.metrics.add(batch, policy, self.loss)
            if runs:
                self.running.add(output, batch)
            self.guard.note(batch, policy.sums)
            if self.margins is not None:
                self.margins.add(number, batch, output.rewards)
        self.in_memory.share_gradients()
        if runs:
            self.running.close_step(self._summed)
        return total

    def _take_gradients(self, model: Any, inputs: Step) -> Iterator[tuple[Tensor, ResponseLogps]]:
        """Add up those of each micro-batch; yields its loss and log-probs."""
        accelerator = self.accelerator
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        every = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        counts, ranks = step_counts(inputs), accelerator.num_processes
        for number, batch in enumerate(inputs.micro_batches):
            last = number == len(inputs.micro_batches) - 1
            accelerator.gradient_state._set_sync_gradients(last)
            together = last or deepspeed or every or self.in_memory.apart
            alone = nullcontext() if together else accelerator.no_sync(model)
            with alone, straight_into_grad(ranks == 1 and accelerator.scaler is None):
                with self.compute_loss_context_manager():
                    loss, policy = micro_batch_loss(model, batch, self.loss, counts)
                # engines average over ranks; the step's loss is a sum of shares
                accelerator.backward(loss * ranks, **({"scale_wrt_gas": False} if deepspeed else {}))
            yield loss.detach() * ranks, policy

    def _reference_logps(self, batch: PackedBatch) -> ResponseLogps:
        """In the policy's precision; the Trainer's own context leaves that to models it has prepared."""
        with self.accelerator.autocast():
            return self.reference(batch)

    def _prepared(self, model: Any, step: Step) -> Step:
        with self.compute_loss_context_manager():
            return prepare_step(
                model,
                step.to(self.args.device),
                self.loss,
                reference=None if self.reference is None else self._reference_logps,
                running=self.running.mean,
                summed=self.in_memory.summed,
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.guard.check(model, super()._get_grad_norm(model, grad_norm))

    # logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.metrics.sums is not None:
            now = time.perf_counter()
            tokens = int(self._summed(torch.tensor([self.metrics.tokens], dtype=torch.float64)).item())
            self.state.num_input_tokens_seen += tokens
            drained = self.metrics.drain(self._summed)
            logs |= {name: value for name, value in drained.items() if name != "loss"}
            logs["tokens_per_second"] = tokens / max(now - self.window_start, 1e-9)
            self.window_start = now
            if self.margins is not None:
                self.margins.flush()
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

    def evaluation_loop(
        self,
        dataloader: StepLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        sums = self.evaluated(dataloader)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in sums.drain(self._summed).items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    @torch.no_grad()
    def evaluated(self, dataloader: StepLoader) -> MetricSums:
        """This process's sums over all steps of a loader, without dropout."""
        was_training = self.model.training
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        sums = MetricSums()
        window = time.perf_counter()
        for step in map(open_step, dataloader):
            counts = step_counts(step)
            for batch in self._prepared(model, step).micro_batches:
                with self.compute_loss_context_manager():
                    _, policy = micro_batch_loss(model, batch, self.loss, counts)
                sums.add(batch, policy, self.loss)
        model.train(was_training)
        self.window_start += time.perf_counter() - window  # training throughput leaves evaluation out
        return sums

    # checkpoints

    def _save_more(self, folder: Path) -> None:
        super()._save_more(folder)
        if self.loss.objective.baseline == Baseline.RUNNING:
            (folder / RunningMean.FILE).write_text(self.running.to_json(), encoding="utf-8")
        if self._stream is not None:
            self._stream.save_mark(folder, self.state.global_step)

    def _load_more(self, checkpoint: Path) -> None:
        super()._load_more(checkpoint)
        if self.loss.objective.baseline == Baseline.RUNNING:
            self._require(str(checkpoint), RunningMean.FILE)
            self.running = RunningMean.from_json((checkpoint / RunningMean.FILE).read_text(encoding="utf-8"))
        if self._stream is not None:
            self._require(str(checkpoint), Mark.FILE)
            self._stream.load_mark(checkpoint)

    def _facts(self) -> dict[str, Any]:
        return {
            **super()._facts(),
            "micro_batch_tokens": {"asked": self.asked_tokens, "taken": self.cut.max_tokens},
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self._data_hash,
            "rows": "streamed" if self._stream else len(self.train_dataset),
            "global_batch": self.args.train_batch_size * self.args.world_size,
            "seed": self.args.seed,
            "objective": repr(self.loss),
            **({"reference": self._reference_hash} if self.loss.objective.needs_reference else {}),
        }

    @cached_property
    def _reference_hash(self) -> str:
        return hash_weights(self.reference.state_dict())

    @cached_property
    def _data_hash(self) -> str:
        return self._stream.identity if self._stream else hash_groups(self.train_dataset)  # seconds for a large set
