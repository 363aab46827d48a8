"""The data loader of a whole-step trainer: one item is one optimizer step, named by (epoch, step).

The sampler yields keys and the dataset plans and packs on demand, so resuming in the middle of an epoch drops keys and
loads nothing.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from preftune.data.plan import Cut, epoch_order
from preftune.train.step import build_step
from preftune.types import Step, TokenizedGroup

StepKey = tuple[int, int]


@dataclass(frozen=True)
class StepSource(Dataset):
    """Builds the step of a key. `seed` None keeps the rows in their order (evaluation)."""

    groups: Sequence[TokenizedGroup]
    global_batch: int
    cut: Cut
    seed: int | None
    rank: int = 0
    ranks: int = 1
    share_prompt: bool = True
    padded: bool = False

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def steps(self) -> int:
        return math.ceil(len(self.groups) / self.global_batch)

    def __getitems__(self, keys: Sequence[StepKey]) -> list[Step]:
        return [self[key] for key in keys]

    def __getitem__(self, key: StepKey) -> Step:
        epoch, step = key
        order: Sequence[int] = (
            range(len(self.groups)) if self.seed is None else epoch_order(len(self.groups), self.seed, epoch)
        )
        rows = order[step * self.global_batch : (step + 1) * self.global_batch]
        groups = [self.groups[row] for row in rows]
        return build_step(
            groups,
            self.cut,
            rank=self.rank,
            ranks=self.ranks,
            share_prompt=self.share_prompt,
            padded=self.padded,
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

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def step_loader(source: StepSource, workers: int = 0) -> StepLoader:
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
    return pickle.loads(item) if isinstance(item, bytes) else item  # our own worker made it


def _only(items: list[Step]) -> Step:
    return items[0]


def _as_bytes(items: list[Step]) -> bytes:
    """From a worker as one piece of bytes: as tensors, each of a step's hundreds would hold a file descriptor open."""
    return pickle.dumps(items[0], protocol=pickle.HIGHEST_PROTOCOL)
