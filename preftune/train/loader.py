"""The data loader of a whole-step trainer: one item is one optimizer step, named by (epoch, step).

The sampler yields keys and the dataset plans and packs on demand, so resuming in the middle of an epoch drops keys and
loads nothing.
"""

from __future__ import annotations

import errno
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from multiprocessing import Lock
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from preftune.data.plan import Cut, epoch_order, uneven_share
from preftune.errors import DataError, TrainingError
from preftune.train.step import Packing, build_step, joint
from preftune.types import Step, TokenizedGroup

StepKey = tuple[int, int]
LOCKS = 8  # of a queue and an event, about


@dataclass(frozen=True)
class StepSource(Dataset):
    """Builds the step of a key. `seed` None keeps the rows in their order (evaluation).

    probes: give every row a mismatched response, for KTO.
    """

    groups: Sequence[TokenizedGroup]
    global_batch: int
    cut: Cut
    seed: int | None
    rank: int = 0
    ranks: int = 1
    packing: Packing = field(default_factory=Packing)
    probes: bool = False

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def steps(self) -> int:
        return math.ceil(len(self.groups) / self.global_batch)

    def __getitems__(self, keys: Sequence[StepKey]) -> list[Step]:
        return [self[key] for key in keys]

    def __getitem__(self, key: StepKey) -> Step:
        epoch, step = key
        rows = self._order(epoch)[step * self.global_batch : (step + 1) * self.global_batch]
        return build_step(
            [self.groups[row] for row in rows],
            self.cut,
            rank=self.rank,
            ranks=self.ranks,
            packing=self.packing,
            probes=self._probes(rows, epoch) if self.probes else (),
        )

    def _order(self, epoch: int) -> Sequence[int]:
        return range(len(self.groups)) if self.seed is None else epoch_order(len(self.groups), self.seed, epoch)

    def uneven_share(self, epoch: int = 0) -> float:
        """See `preftune.data.plan.uneven_share`; of the steps of an epoch."""
        costs = [self.packing.cost(self.groups[row]) for row in self._order(epoch)]
        starts = range(0, len(costs), self.global_batch)
        return uneven_share((costs[start : start + self.global_batch] for start in starts), self.ranks)

    def joint_groups(self, epoch: int) -> list[TokenizedGroup]:
        """Every row of an epoch with its probe behind it, in the order of the rows."""
        order = self._order(epoch)
        found: dict[int, TokenizedGroup] = {}
        for start in range(0, len(order), self.global_batch):
            rows = order[start : start + self.global_batch]
            for row, probe in zip(rows, self._probes(rows, epoch), strict=True):
                found[row] = joint(self.groups[row], probe)
        return [found[row] for row in range(len(self.groups))]

    def _probes(self, rows: Sequence[int], epoch: int) -> list[TokenizedGroup]:
        """For each row of a step its prompt with a response to another prompt.

        The response is that of the next row of the step with another prompt; where the step has only one prompt, of
        the next such row of the epoch. It is cut to the length of the longest row.
        """
        order = self._order(epoch)
        after = (order.index(rows[-1]) + 1) % len(order)
        probes = []
        for number, row in enumerate(rows):
            elsewhere = chain(rows[number + 1 :], rows[:number], islice(order, after, None), islice(order, after))
            prompt = self.groups[row].prompt_ids
            other = next(self.groups[n] for n in elsewhere if self.groups[n].prompt_ids != prompt)
            response = other.response_ids[0][: self._longest - len(prompt)]
            known = self.groups[row].reference[1:]
            reference = (known[epoch],) if known else ()
            probes.append(TokenizedGroup(prompt, [response], self.groups[row].origin, reference=reference))
        return probes

    @cached_property
    def _longest(self) -> int:
        return max(len(group.prompt_ids) + len(group.response_ids[0]) for group in self.groups)


def check_prompts(groups: Sequence[TokenizedGroup]) -> None:
    """Refuse rows that all have one prompt: none of them could have a probe.

    Raises:
        DataError: they have.
    """
    if all(group.prompt_ids == groups[0].prompt_ids for group in groups):
        raise DataError(
            f"{groups[0].origin}: all {len(groups)} rows have the same prompt, and KTO needs a response to another "
            "one. Add rows with other prompts, or take an objective for pairs."
        )


class StepKeys(Sampler):
    """Yields `[(epoch, step)]` for each step of the epoch that `set_epoch` named."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[StepKey]]:
        return iter([[(self.epoch, step)] for step in range(self.steps)])


class StepLoader(DataLoader):
    """Has `set_epoch`, which Trainer calls; after a resume Trainer calls the sampler's instead."""

    def __iter__(self) -> Any:
        if self.num_workers:
            _check_shared_memory(self.num_workers)
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def _check_shared_memory(workers: int) -> None:
    """Steps come from workers through pipes; the locks of these are files in /dev/shm.

    Raises:
        TrainingError: there is no room for them.
    """
    try:
        tuple(Lock() for _ in range(LOCKS * (workers + 1)))  # all of them at once
    except OSError as cause:
        full = "is full" if cause.errno == errno.ENOSPC else "cannot be used"
        raise TrainingError(
            f"Shared memory (/dev/shm) {full} ({cause.strerror}), and processes that prepare steps have their locks "
            "there. Set dataloader_num_workers: 0, or give it room (docker run --shm-size=64m)."
        ) from cause


def step_loader(source: Any, workers: int = 0) -> StepLoader:
    """Of a `StepSource`, or what else has `steps` and builds the step of a key."""
    keys = StepKeys(source.steps)
    return StepLoader(
        source,
        batch_sampler=keys,
        collate_fn=_as_bytes if workers else _only,
        num_workers=workers,
        generator=torch.Generator(),  # else every epoch draws from the global generator
        persistent_workers=False,
    )


def open_step(item: Step | bytes) -> Step:
    """What the loader yields, as a step."""
    return pickle.loads(item) if isinstance(item, bytes) else item  # noqa: S301, our own worker made it


def _only(items: list[Step]) -> Step:
    return items[0]


def _as_bytes(items: list[Step]) -> bytes:
    """From a worker as one piece of bytes: as tensors, each of a step's hundreds would hold a file descriptor open."""
    return pickle.dumps(items[0], protocol=pickle.HIGHEST_PROTOCOL)
