"""Metrics as (sum, count) pairs on the device: added a micro-batch at a time, reduced once a log line.

Keys: `rewards/{chosen,rejected,margins,accuracies}`, `logps/{chosen,rejected}` (nats, summed over tokens),
`lengths/{chosen,rejected}` (tokens), `nll` (nats per token of the first response), `baseline`, and the objective's own
terms. Of a ranked group chosen and rejected are the best and the worst response, and accuracy is the share of its pairs
in the right order; of unpaired rows they are the desirable and the undesirable ones. A tie counts as wrong. The weights
of rows enter the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from preftune.objectives.base import Objective, Per, Reads
from preftune.train.step import Part, StepLoss
from preftune.types import Feedback, Layout, ObjectiveOutput, PackedBatch, ResponseLogps

Counted = dict[str, tuple[Tensor, Tensor]]  # name -> (value, count), each (G,)


class MetricSums:
    """Running sums of one logging window."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None  # (2, M): sums, counts; float64 where the device has it
        self.tokens = 0

    @torch.no_grad()
    def add(self, batch: PackedBatch, policy: ResponseLogps, loss: StepLoss) -> ObjectiveOutput:
        """Count one micro-batch; `policy` holds its detached log-probs. Returns what the objective said of it."""
        parts, output = loss.parts(policy, batch.reference, batch.feedback)
        values = _values(loss.objective, policy, batch.feedback, output)
        values |= _loss_parts(parts, policy, batch.row_weights)
        wide = torch.float32 if batch.weights.device.type == "mps" else torch.float64
        weights = batch.weights.to(wide)
        sums = torch.stack([(value.to(wide) * weights).sum() for value, _ in values.values()])
        counts = torch.stack([(count.to(wide) * weights).sum() for _, count in values.values()])
        added = torch.stack([sums, counts])
        self.sums = added if self.sums is None else self.sums + added
        self.names = tuple(values)
        self.tokens += batch.tokens
        return output

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of the window, and start anew. `reduce` sums a tensor over ranks; one call, one device read."""
        if self.sums is None:
            return {}
        sums, counts = reduce(self.sums).tolist()
        counted = zip(self.names, sums, counts, strict=True)
        means = {name: s / max(c, 1) for name, s, c in counted if c or name.startswith("loss/")}
        loss = sum(means.pop(name) for name in self.names if name.startswith("loss/"))
        if "rewards/margins" not in means and {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]  # of classes, not of pairs
        self.sums, self.tokens = None, 0
        return {"loss": loss, **means}


def _loss_parts(parts: list[Part], policy: ResponseLogps, row_weights: Tensor) -> Counted:
    first = policy.lengths[:, 0]
    ones = torch.ones_like(first)
    return {
        f"loss/{n}": (part.values * row_weights, first if part.per == Per.TOKEN else ones)
        for n, part in enumerate(parts)
    }


def _values(objective: Objective, policy: ResponseLogps, feedback: Feedback, output: ObjectiveOutput) -> Counted:
    ones = torch.ones_like(policy.lengths[:, 0])
    values: Counted = {}
    if objective.reads == Reads.LOGPS:
        values["nll"] = (-policy.sums[:, 0], policy.lengths[:, 0])
    if objective.layout == Layout.SINGLE:
        values |= {"logps/response": (policy.sums[:, 0], ones), "lengths/response": (policy.lengths[:, 0], ones)}
    elif objective.layout == Layout.UNPAIRED:
        desirable = feedback.scores[:, 0] > 0
        for side, members in (("chosen", desirable), ("rejected", ~desirable)):
            first = torch.zeros_like(ones)
            values |= _side(objective, side, policy, output, first, members.to(ones.dtype))
    else:
        valid = feedback.valid
        best, worst = torch.zeros_like(ones), valid.sum(dim=1) - 1
        values |= _side(objective, "chosen", policy, output, best, ones)
        values |= _side(objective, "rejected", policy, output, worst, ones)
        chosen, rejected = (values[f"rewards/{side}"][0] for side in ("chosen", "rejected"))
        paired = objective.layout == Layout.PAIRED  # its order says which is better, whatever scores there are
        right = (chosen > rejected).float() if paired else _ordered(output.rewards, feedback)
        values |= {"rewards/margins": (chosen - rejected, ones), "rewards/accuracies": (right, ones)}
    if feedback.baseline is not None:
        values["baseline"] = (feedback.baseline.expand(ones.shape), ones)
    return values | {name: (value, ones) for name, value in output.terms.items()}


def _side(
    objective: Objective, side: str, policy: ResponseLogps, output: ObjectiveOutput, column: Tensor, count: Tensor
) -> Counted:
    """Reward, log-prob and length of one response a group, of the groups that `count` marks."""

    def pick(values: Tensor) -> Tensor:
        return values.gather(1, column[:, None])[:, 0] * count

    found = {f"rewards/{side}": (pick(output.rewards), count), f"lengths/{side}": (pick(policy.lengths), count)}
    if objective.reads == Reads.LOGPS:
        found[f"logps/{side}"] = (pick(policy.sums), count)
    return found


def _ordered(rewards: Tensor, feedback: Feedback) -> Tensor:
    """(G,) share of the pairs of each group whose better response has the higher reward."""
    better = feedback.better()
    right = (rewards[:, :, None] > rewards[:, None, :]) & better
    return right.sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1)
