"""What must be known of a whole optimizer step before its first gradient, and the forward passes that tell it.

* the log-probs under a live reference, with the prompt shared between a response and its probe;
* KTO's reference point, the mean log-ratio of the mismatched probes of the step over all ranks, reduced once;
* for an objective that looks at all groups (`group_local` False) the log-probs of the whole step. The objective is
  called once on all of them; the second pass needs its slopes alone, so the cut changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from preftune.errors import DataError
from preftune.objectives.base import Baseline, Objective
from preftune.train.step import StepLoss
from preftune.types import Feedback, ObjectiveOutput, PackedBatch, ResponseLogps, Step, TokenizedGroup, WholeStep

LiveReference = Callable[[PackedBatch], ResponseLogps]


class RunningMean:
    """The mean reward of all responses of the steps so far, over all ranks: BCO's reward shift."""

    FILE = "running_mean.json"

    def __init__(self, total: float = 0.0, count: float = 0.0) -> None:
        self.totals = torch.tensor([total, count], dtype=torch.float64)
        self.pending: list[Tensor] = []  # of the step that is running, this rank's part

    @property
    def mean(self) -> Tensor:
        return self.totals[0] / self.totals[1].clamp(min=1)

    @torch.no_grad()
    def add(self, output: ObjectiveOutput, batch: PackedBatch) -> None:
        counted = batch.feedback.valid * batch.weights[:, None]
        self.pending.append(torch.stack([(output.rewards * counted).sum(), counted.sum()]))

    def close_step(self, summed: Callable[[Tensor], Tensor]) -> None:
        totals = summed(_wide(torch.stack(self.pending)).sum(dim=0))
        self.totals = self.totals.to(totals) + totals
        self.pending = []

    def to_json(self) -> str:
        return json.dumps(self.totals.tolist())

    @staticmethod
    def from_json(text: str) -> RunningMean:
        return RunningMean(*json.loads(text))


def alone(values: Tensor) -> Tensor:
    """The sum over the ranks of a single process."""
    return values


@torch.no_grad()
def prepare_step(
    model: Any,
    step: Step,
    loss: StepLoss,
    *,
    reference: LiveReference | None = None,
    running: Tensor | None = None,
    summed: Callable[[Tensor], Tensor] = alone,
) -> Step:
    """The step with everything attached that its objective needs.

    Args:
        model: the policy, wrapped by an engine or not.
        step: on the model's device.
        reference: log-probs of a batch under the reference model; None where the rows carry them or none are needed.
        running: (), the mean reward of the steps so far, for objectives with a running baseline.
        summed: adds up a tensor over all ranks; called the same number of times on each.
    """
    objective = loss.objective
    if objective.needs_reference and reference is not None:
        step = _with_reference(step, reference)
    if objective.baseline == Baseline.PROBES:
        step = _with_baseline(step, _probe_mean(model, step, summed))
    elif objective.baseline == Baseline.RUNNING:
        step = _with_baseline(step, torch.zeros(()) if running is None else running)
    return step if objective.group_local else _with_whole(model, step, loss, summed)


def _with_reference(step: Step, reference: LiveReference) -> Step:
    if not step.joints:
        batches = tuple(replace(batch, reference=reference(batch)) for batch in step.micro_batches)
        return replace(step, micro_batches=batches)
    batches, probes = [], []
    for batch, probe, joint in zip(step.micro_batches, step.probes, step.joints, strict=True):
        both = reference(joint)
        batches.append(replace(batch, reference=ResponseLogps(both.sums[:, :1], both.lengths[:, :1])))
        probes.append(replace(probe, reference=ResponseLogps(both.sums[:, 1:], both.lengths[:, 1:])))
    return replace(step, micro_batches=tuple(batches), probes=tuple(probes))


def _probe_mean(model: Any, step: Step, summed: Callable[[Tensor], Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for probe in step.probes:
        assert probe.reference is not None
        ratios = (model(batch=probe).sums - probe.reference.sums)[:, 0]
        total = total.to(_wide(ratios)) + (ratios * probe.weights).sum()
    return summed(total) / step.global_groups


def _with_baseline(step: Step, baseline: Tensor) -> Step:
    return replace(
        step,
        micro_batches=tuple(
            replace(batch, feedback=replace(batch.feedback, baseline=baseline.to(batch.weights.device)))
            for batch in step.micro_batches
        ),
    )


def check_row_weights(objective: Objective, groups: Iterable[TokenizedGroup] | Step) -> None:
    """Refuse weights of rows where a row has no loss of its own. A step is looked at before it goes to the device.

    Raises:
        DataError: naming the first such row.
    """
    if objective.group_local:
        return
    if isinstance(groups, Step):
        batches = groups.micro_batches
        pairs = [pair for batch in batches for pair in zip(batch.origins, batch.row_weights.tolist(), strict=True)]
        heavy = [origin for origin, weight in pairs if weight != 1]
    else:
        heavy = [group.origin for group in groups if group.weight != 1]
    if heavy:
        raise DataError(
            f"{heavy[0]}: the row has a weight, and {type(objective).__name__} compares all rows of a step, so that "
            "none has a loss of its own. Ignore the column with columns: {weight: null}, or take another objective."
        )


def _with_whole(model: Any, step: Step, loss: StepLoss, summed: Callable[[Tensor], Tensor]) -> Step:
    """Every group of the step, from all ranks, in the order of the step; zero rows are filled in by the sum."""
    sums = [model(batch=batch).sums for batch in step.micro_batches]
    width = sums[0].shape[1]
    rows = torch.zeros(step.global_groups, 5 * width, device=sums[0].device, dtype=_wide(sums[0]).dtype)
    for batch, own, places in zip(step.micro_batches, sums, step.places, strict=True):
        reference = torch.zeros_like(own) if batch.reference is None else batch.reference.sums
        columns = [own, reference, batch.lengths, batch.feedback.scores, batch.feedback.valid]
        facts = torch.cat([column.to(rows.dtype) for column in columns], dim=1) * batch.weights[:, None]
        rows.index_add_(0, torch.tensor(places, device=rows.device), facts)
    policy, reference, lengths, scores, valid = summed(rows).to(sums[0].dtype).split(width, dim=1)
    lengths = lengths.long()
    baseline = step.micro_batches[0].feedback.baseline
    feedback = Feedback(scores.float(), valid > 0, baseline)
    with torch.enable_grad():
        leaf = policy.clone().requires_grad_()
        out = loss.objective(ResponseLogps(leaf, lengths), ResponseLogps(reference, lengths), feedback)
        (slopes,) = torch.autograd.grad(out.losses.sum(), leaf)
    whole = WholeStep(policy, out.losses.detach(), slopes, out.rewards, out.terms)
    batches = []
    for batch, places in zip(step.micro_batches, step.places, strict=True):
        own = whole.select(torch.tensor(places, device=rows.device))
        batches.append(replace(batch, feedback=replace(batch.feedback, whole=own)))
    return replace(step, micro_batches=tuple(batches))


def _wide(values: Tensor) -> Tensor:
    """In float64 where the device has it."""
    return values if values.device.type == "mps" else values.double()
