"""What a step has changed before the optimizer moves, so that it can be done again or left out; and memory's budget.

When a micro-batch does not fit into memory, the token budget is halved and the whole step is cut and done again. Losses
are sums of shares, so the result is that of a run that had the smaller budget, but for dropout's draws. A checkpoint's
record has the budget that the run had come to, and a resume keeps it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.data.pack import unpack
from preftune.data.plan import Cut
from preftune.errors import TrainingError
from preftune.model.load import one_line
from preftune.train.checkpoint import facts_of
from preftune.train.step import Packing, build_step
from preftune.types import PackedBatch, Step, TokenizedGroup

logger = logging.getLogger(__name__)
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Before:
    """The logging window and the running baseline as they were before a step."""

    metrics: tuple[tuple[str, ...], Tensor | None, int]
    totals: Tensor
    loss: Tensor | None

    @classmethod
    def of(cls, trainer: Any) -> Before:
        metrics, loss = trainer.metrics, getattr(trainer, "_tr_loss", None)
        window = (metrics.names, metrics.sums, metrics.tokens)
        return cls(window, trainer.running.totals, None if loss is None else loss.clone())

    def restore(self, trainer: Any) -> None:
        metrics = trainer.metrics
        metrics.names, metrics.sums, metrics.tokens = self.metrics
        trainer.running.totals, trainer.running.pending = self.totals, []
        if self.loss is not None:
            trainer._tr_loss.copy_(self.loss)


class StepInMemory:
    """Does steps, within a budget that shrinks where memory ends."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.before: Before | None = None
        self.shrunk = False

    def __call__(self, work: Callable[[Step], Tensor], step: Step) -> Tensor:
        """`work(step)`, which adds up the gradients of a step.

        Raises:
            TrainingError: a single row does not fit, or other processes wait in the same step.
        """
        trainer = self.trainer
        self.before = Before.of(trainer)
        step = recut(step, trainer.cut, trainer._packing) if self.shrunk else step
        while True:
            try:
                return work(step)
            except RuntimeError as cause:
                if not _is_out_of_memory(cause):
                    raise
                said = one_line(cause)
            step = self._smaller(step, said)  # outside of the handler, which holds the failed step's tensors

    def _smaller(self, step: Step, said: str) -> Step:
        trainer = self.trainer
        self.before.restore(trainer)
        trainer.guard.seen = []
        trainer.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        largest, number = max(batch.tokens for batch in step.micro_batches), trainer.state.global_step + 1
        if trainer.accelerator.num_processes > 1:
            raise TrainingError(
                f"Out of memory in step {number} with micro-batches of up to {largest} tokens ({said}). Set "
                f"micro_batch_tokens: {largest // 2} or less, and go on with resume_from_checkpoint=auto."
            )
        if all(len(batch.origins) == 1 for batch in step.micro_batches):
            row = max(step.micro_batches, key=lambda batch: batch.tokens)
            raise TrainingError(
                f"Out of memory in step {number}: {row.origins[0]} alone has {row.tokens} tokens ({said}). Set "
                "gradient_checkpointing: true, or a smaller max_length."
            )
        budget, count = min(largest, trainer.cut.max_tokens or largest), len(step.micro_batches)
        again = step
        while len(again.micro_batches) == count:
            budget //= 2
            again = recut(step, replace(trainer.cut, max_tokens=budget), trainer._packing)
        trainer.cut, self.shrunk = replace(trainer.cut, max_tokens=budget), True
        logger.warning(
            "Out of memory in step %d with micro-batches of up to %d tokens; it is done again with %d, and so are the "
            "next ones (%s).",
            number, largest, budget, said,
        )  # fmt: skip
        return again


def kept_tokens(checkpoint: Path | None, asked: int | None, engine: str, processes: int) -> int | None:
    """The tokens of a micro-batch that the run of a checkpoint had come to.

    None where its record says nothing, where another number is asked for now, and under another engine or with other
    processes, whose memory is another.
    """
    facts = {} if checkpoint is None else facts_of(checkpoint)
    record = facts.get("micro_batch_tokens")
    if not record or record["asked"] != asked or (facts["engine"], facts["processes"]) != (engine, processes):
        return None
    return record["taken"]


def recut(step: Step, cut: Cut, packing: Packing) -> Step:
    """The same step of a single process, cut otherwise."""

    def in_order(batches: tuple[PackedBatch, ...]) -> list[TokenizedGroup]:
        found = {}
        for batch, places in zip(batches, step.places, strict=True):
            found.update(zip(places, unpack(batch), strict=True))
        return [found[place] for place in range(step.global_groups)]

    probes = in_order(step.probes) if step.probes else ()
    return build_step(in_order(step.micro_batches), cut, packing=packing, probes=probes)


def _is_out_of_memory(cause: RuntimeError) -> bool:
    return isinstance(cause, torch.OutOfMemoryError) or any(words in str(cause) for words in NO_MEMORY)
