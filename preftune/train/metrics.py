"""Metrics as (sum, count) pairs on the device: added a micro-batch at a time, reduced once a log line.

Keys: `rewards/{chosen,rejected,margins,accuracies}`, `logps/{chosen,rejected}` (nats, summed over tokens),
`lengths/{chosen,rejected}` (tokens), `nll` (nats per token of the first response), and the objective's own terms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from preftune.objectives.base import Per
from preftune.train.step import Part, StepLoss
from preftune.types import Layout, ObjectiveOutput, PackedBatch, ResponseLogps


class MetricSums:
    """Running sums of one logging window."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None  # (2, M): sums, counts; float64 where the device has it
        self.tokens = 0

    @torch.no_grad()
    def add(self, batch: PackedBatch, policy: ResponseLogps, loss: StepLoss) -> None:
        """Count one micro-batch; `policy` holds its detached log-probs."""
        parts, output = loss.parts(policy, batch.reference, batch.feedback)
        values = _values(loss.objective.layout, policy, output)
        values |= _loss_parts(parts, policy)
        wide = torch.float32 if batch.weights.device.type == "mps" else torch.float64
        weights = batch.weights.to(wide)
        sums = torch.stack([(value.to(wide) * weights).sum() for value, _ in values.values()])
        counts = torch.stack([(count.to(wide) * weights).sum() for _, count in values.values()])
        added = torch.stack([sums, counts])
        self.sums = added if self.sums is None else self.sums + added
        self.names = tuple(values)
        self.tokens += batch.tokens

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of the window, and start anew. `reduce` sums a tensor over ranks; one call, one device read."""
        if self.sums is None:
            return {}
        sums, counts = reduce(self.sums).tolist()
        means = {name: s / max(c, 1) for name, s, c in zip(self.names, sums, counts, strict=True)}
        loss = sum(means.pop(name) for name in self.names if name.startswith("loss/"))
        self.sums, self.tokens = None, 0
        return {"loss": loss, **means}


def _loss_parts(parts: list[Part], policy: ResponseLogps) -> dict[str, tuple[Tensor, Tensor]]:
    first = policy.lengths[:, 0]
    ones = torch.ones_like(first)
    return {f"loss/{n}": (part.values, first if part.per == Per.TOKEN else ones) for n, part in enumerate(parts)}


def _values(layout: Layout, policy: ResponseLogps, output: ObjectiveOutput) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (value, count), each (G,)."""
    first = policy.lengths[:, 0]
    ones = torch.ones_like(first)
    values = {"nll": (-policy.sums[:, 0], first)}
    if layout == Layout.PAIRED:
        chosen, rejected = output.rewards.unbind(dim=1)
        values |= {
            "rewards/chosen": (chosen, ones),
            "rewards/rejected": (rejected, ones),
            "rewards/margins": (chosen - rejected, ones),
            "rewards/accuracies": ((chosen > rejected).float(), ones),
            "logps/chosen": (policy.chosen, ones),
            "logps/rejected": (policy.rejected, ones),
            "lengths/chosen": (first, ones),
            "lengths/rejected": (policy.lengths[:, 1], ones),
        }
    elif layout == Layout.SINGLE:
        values |= {"logps/response": (policy.sums[:, 0], ones), "lengths/response": (first, ones)}
    return values | {name: (value, ones) for name, value in output.terms.items()}
