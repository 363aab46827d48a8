"""Tokens and forward passes of one epoch: what packing and the shared prompt save on these rows.

padded    B groups a batch in the order of the epoch, all their responses (each with its prompt) padded to the
          longest of the batch: as trainers do that pad
unshared  packed without padding, the prompt repeated before every response
shared    packed, what the responses of a group have in common computed once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from preftune.data.plan import Cut, epoch_order, plan_step
from preftune.types import TokenizedGroup


@dataclass(frozen=True)
class Savings:
    """Tokens that the model is fed in one epoch on each road.

    Args:
        padded, unshared, shared: see above.
        padded_groups: B, groups of a padded batch.
        tokens: those of the road that is taken.
        steps: optimizer steps of an epoch.
        micro_batches: forward passes of an epoch and one process, by the planner.
        fullest: tokens of the largest micro-batch.
    """

    padded: int
    unshared: int
    shared: int
    padded_groups: int
    tokens: int
    steps: int
    micro_batches: int
    fullest: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_savings(
    groups: Sequence[TokenizedGroup],
    costs: Sequence[int],
    *,
    global_batch: int,
    cut: Cut,
    padded_groups: int = 2,
    ranks: int = 1,
    seed: int = 42,
    feed_last: bool = False,
) -> Savings:
    """Plan the first epoch and count.

    Args:
        groups: at least one.
        costs: tokens of each group on the road that is taken.
        global_batch: groups of one optimizer step over all `ranks`.
        cut: the limits of a micro-batch.
        seed: of the order of the rows.
        feed_last: the last token of a response is fed too, to a value head.
    """
    order = epoch_order(len(groups), seed, 0)
    micro_batches = fullest = 0
    for start in range(0, len(order), global_batch):
        step = [costs[row] for row in order[start : start + global_batch]]
        plan = plan_step(step, cut, ranks)
        micro_batches += len(plan[0])
        loads = (sum(step[index] for index in batch.groups) for batches in plan for batch in batches)
        fullest = max(fullest, *loads)
    return Savings(
        padded=_padded([groups[row] for row in order], padded_groups),
        unshared=sum(_alone(group, feed_last) for group in groups),
        shared=sum(group.packed_length(feed_last) for group in groups),
        padded_groups=padded_groups,
        tokens=sum(costs),
        steps=ceil(len(groups) / global_batch),
        micro_batches=micro_batches,
        fullest=fullest,
    )


def _alone(group: TokenizedGroup, feed_last: bool) -> int:
    unfed = 0 if feed_last else 1
    return sum(len(group.prompt_ids) + len(ids) - unfed for ids in group.response_ids)


def _padded(groups: Sequence[TokenizedGroup], size: int) -> int:
    total = 0
    for start in range(0, len(groups), size):
        batch = groups[start : start + size]
        longest = max(len(group.prompt_ids) + max(map(len, group.response_ids)) for group in batch)
        total += longest * sum(len(group.response_ids) for group in batch)
    return total
