"""One optimizer step -> micro-batches: which groups run together, on which rank.

The cut changes speed and memory, never the result: losses are summed and divided once by the step's global counts.
Every rank gets the same number of micro-batches (sharded engines hang otherwise); a rank that has fewer repeats its
smallest group with weight 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Cut:
    """How a step is cut: at most `max_tokens` packed tokens and at most `max_groups` groups in a micro-batch.

    A single group longer than `max_tokens` gets a micro-batch of its own. None sets no limit.
    """

    max_tokens: int | None = None
    max_groups: int | None = None

    def fits(self, tokens: int, groups: int) -> bool:
        return (self.max_tokens is None or tokens <= self.max_tokens) and (
            self.max_groups is None or groups <= self.max_groups
        )


@dataclass(frozen=True)
class PlannedBatch:
    """The groups (indices into the step) of one micro-batch; `filler` batches count for nothing."""

    groups: tuple[int, ...]
    filler: bool = False


def plan_step(costs: Sequence[int], cut: Cut, ranks: int = 1) -> list[list[PlannedBatch]]:
    """Micro-batches for each rank: `plan[rank][i]`, the same number on every rank.

    Args:
        costs: packed tokens of each group of the step, all ranks together.
        cut: the limits of one micro-batch.
        ranks: number of processes; groups are dealt to the rank with the fewest tokens, longest first.
    """
    order, shares, _ = _deal(costs, ranks)
    plan = [_first_fit(share, costs, cut) for share in shares]
    count = max(len(batches) for batches in plan)
    filler = PlannedBatch((order[-1],), filler=True)
    return [batches + [filler] * (count - len(batches)) for batches in plan]


def uneven_share(steps: Iterable[Sequence[int]], ranks: int) -> float:
    """How much more tokens the fullest rank has than the mean one, over whole steps: 0.05 is 5 % of the time waited.

    Args:
        steps: the packed tokens of each group, step by step.
    """
    fullest = total = 0
    for costs in steps:
        loads = _deal(costs, ranks)[2]
        fullest += max(loads) * ranks
        total += sum(loads)
    return fullest / total - 1 if total else 0.0


def _deal(costs: Sequence[int], ranks: int) -> tuple[list[int], list[list[int]], list[int]]:
    """Longest first to the rank with the fewest tokens: order of dealing, groups and tokens by rank."""
    order = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in order:
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += costs[index]
    return order, shares, loads


@lru_cache(maxsize=2)
def epoch_order(groups: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of the rows in an epoch: a pure function of its arguments, so that resuming is a jump."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return tuple(torch.randperm(groups, generator=generator).tolist())


def _first_fit(share: Sequence[int], costs: Sequence[int], cut: Cut) -> list[PlannedBatch]:
    """First-fit-decreasing: `share` comes longest first."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for index in share:
        for number, load in enumerate(loads):
            if cut.fits(load + costs[index], len(bins[number]) + 1):
                bins[number].append(index)
                loads[number] += costs[index]
                break
        else:
            bins.append([index])
            loads.append(costs[index])
    return [PlannedBatch(tuple(sorted(indices))) for indices in bins]
