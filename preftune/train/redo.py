"""What a step has changed before the optimizer moves, so that it can be done again or left out; and memory's budget.

When a micro-batch does not fit into memory, the token budget is halved and the whole step is cut and done again. Losses
are sums of shares, so the result is that of a run that had the smaller budget, but for dropout's draws. A checkpoint's
record has the budget that the run had come to, and a resume keeps it.

Several processes under DDP do so together. Each adds up its own gradients, and they meet before anything that needs all
of them: the sums that an objective takes of the whole step, and the mean of the gradients at its end. One whose memory
has ended comes to the meeting all the same, with that answer, and then all of them do the step again. Engines that
hold the weights in pieces (FSDP2, ZeRO) wait for each other within every layer, where no such answer can be given.
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
from preftune.train.ranks import average_gradients, meet, of_all_ranks
from preftune.train.step import Packing, build_step
from preftune.types import PackedBatch, Step, TokenizedGroup

logger = logging.getLogger(__name__)
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class EndedElsewhere(Exception):
    """Memory has ended in another process, so that this step is not finished here either."""


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
        if trainer.margins is not None:
            trainer.margins.drop()
        if self.loss is not None:
            trainer._tr_loss.copy_(self.loss)


@dataclass(frozen=True)
class Shortage:
    """Of one process whose memory has ended: what it says, its largest micro-batch, and the budget it would have.

    budget: None where `row`, the largest of all, does not fit by itself.
    """

    said: str
    tokens: int
    budget: int | None
    row: str


class StepInMemory:
    """Does steps, within a budget that shrinks where memory ends.

    apart: several processes add up gradients each for itself (DDP), and meet.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.before: Before | None = None
        self.shrunk = False
        self.apart = False
        self.within = False  # a step
        self.met_last = False  # of a step: from here on nobody can be told

    def __call__(self, work: Callable[[Step], Tensor], step: Step) -> Tensor:
        """`work(step)`, which adds up the gradients of a step.

        Raises:
            TrainingError: a single row does not fit, or other processes wait in the same step.
        """
        trainer = self.trainer
        self.before = Before.of(trainer)
        step = recut(step, trainer.cut, trainer._packing) if self.shrunk else step
        while True:
            self.within, self.met_last, said = True, False, None
            try:
                return work(step)
            except RuntimeError as cause:
                if not is_out_of_memory(cause):
                    raise
                said = one_line(cause)
            except EndedElsewhere:
                pass
            finally:
                self.within = False
            step = self._smaller(step, said)  # outside of the handler, which holds the failed step's tensors

    # several processes

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes; within a step they meet before."""
        if self.apart and self.within:
            self._meet()
        return self.trainer._summed(values)

    def share_gradients(self) -> None:
        """When all gradients of this process are there: their mean over the processes."""
        if self.apart:
            held = self._meet()
            self.met_last = True
            average_gradients(self._trained(), held)

    def _meet(self, ended: bool = False) -> list[bool]:
        """Whether any process has a gradient, for each parameter.

        Raises:
            EndedElsewhere: memory has ended in another one.
        """
        anywhere, held = meet(self._trained(), ended, self.trainer.args.device)
        if anywhere and not ended:
            raise EndedElsewhere
        return held

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]

    # when memory has ended

    def _smaller(self, step: Step, said: str | None) -> Step:
        trainer = self.trainer
        self.before.restore(trainer)
        trainer.guard.seen = []
        trainer.model.zero_grad(set_to_none=True)
        free_memory()
        own = [] if said is None else [self._shortage(step, said)]
        number = trainer.state.global_step + 1
        if trainer.accelerator.num_processes > 1:
            if not self.apart or self.met_last:
                tokens = own[0].tokens
                raise TrainingError(
                    f"Out of memory in step {number} with micro-batches of up to {tokens} tokens ({said}). Set "
                    f"micro_batch_tokens: {tokens // 2} or less, and go on with resume_from_checkpoint=auto."
                )
            if own:
                self._meet(ended=True)
            own = of_all_ranks(own)
        for shortage in own:
            if shortage.budget is None:
                raise TrainingError(
                    f"Out of memory in step {number}: {shortage.row} alone has {shortage.tokens} tokens "
                    f"({shortage.said}). Set gradient_checkpointing: true, or a smaller max_length."
                )
        worst = min(own, key=lambda shortage: shortage.budget)
        trainer.cut, self.shrunk = replace(trainer.cut, max_tokens=worst.budget), True
        if trainer.args.process_index == 0:
            logger.warning(
                "Out of memory in step %d with micro-batches of up to %d tokens; it is done again with %d, and so are "
                "the next ones (%s).",
                number, worst.tokens, worst.budget, worst.said,
            )  # fmt: skip
        return recut(step, trainer.cut, trainer._packing)

    def _shortage(self, step: Step, said: str) -> Shortage:
        trainer = self.trainer
        if trainer.accelerator.num_processes > 1:
            said = f"process {trainer.args.process_index}: {said}"
        batches = [batch for batch in step.micro_batches if batch.weights.any()] or step.micro_batches
        largest = max(batches, key=lambda batch: batch.tokens)
        if all(len(batch.origins) == 1 for batch in batches):
            return Shortage(said, largest.tokens, None, str(largest.origins[0]))
        budget = min(largest.tokens, trainer.cut.max_tokens or largest.tokens)
        count = len(batches)
        while count == len(batches):
            budget //= 2
            count = len(recut(step, replace(trainer.cut, max_tokens=budget), trainer._packing).micro_batches)
        return Shortage(said, largest.tokens, budget, str(largest.origins[0]))


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
    """The same step, of which this process's groups are cut otherwise; repeated ones that fill up are left out.

    Processes may then have different numbers of micro-batches.
    """
    groups = _by_place(step.micro_batches, step)
    if not groups:  # this process has but what fills up
        return step
    probes = _by_place(step.probes, step) if step.probes else {}
    own = sorted(groups)
    again = build_step(
        [groups[place] for place in own],
        cut,
        packing=packing,
        probes=[probes[place] for place in own] if probes else (),
    )
    return replace(
        again,
        places=tuple(tuple(own[index] for index in members) for members in again.places),
        global_groups=step.global_groups,
        global_first_tokens=step.global_first_tokens,
    )


def _by_place(batches: tuple[PackedBatch, ...], step: Step) -> dict[int, TokenizedGroup]:
    found = {}
    for batch, places in zip(batches, step.places, strict=True):
        if batch.weights.any():
            found.update(zip(places, unpack(batch), strict=True))
    return found


def free_memory() -> None:
    """Of what has just failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(cause: RuntimeError) -> bool:
    return isinstance(cause, torch.OutOfMemoryError) or any(words in str(cause) for words in NO_MEMORY)
