"""What one optimizer step means: the loss of a micro-batch and its part of the step's mean. No Trainer, no accelerate.

Losses, each times the weight of its row, are summed over groups and divided once by the counts of the whole step over
all ranks (of groups or tokens, not of weights), so the gradient and the metrics do not depend on how the step was cut.
Engines average gradients over ranks; whoever drives them multiplies by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from preftune.data.pack import pack
from preftune.data.plan import Cut, plan_step
from preftune.errors import RecipeError
from preftune.model.head_gradient import straight_into_grad
from preftune.objectives.base import Objective, Per, Reads
from preftune.types import Feedback, Layout, ObjectiveOutput, PackedBatch, ResponseLogps, Step, TokenizedGroup

SFT_NORMALIZATIONS = ("token", "sequence", "sum")


@dataclass(frozen=True)
class Part:
    """One summand of the loss: values (G,), and what their sum over the step is divided by."""

    values: Tensor
    per: Per


@dataclass(frozen=True)
class StepLoss:
    """The objective and the SFT term beside it.

    Args:
        objective: see `preftune.objectives`.
        sft_weight: factor of the negative log-likelihood of the first (chosen) response; 0 leaves the term out.
        sft_normalization: `token`, the mean over the chosen tokens of the step; `sequence`, the mean over groups of the
            mean over tokens; `sum`, the mean over groups of the sum over tokens.

    Raises:
        RecipeError: a value is out of range, or the objective is SFT itself.
    """

    objective: Objective
    sft_weight: float = 0.0
    sft_normalization: str = "token"

    def __post_init__(self) -> None:
        if self.sft_weight < 0:
            raise RecipeError(f"'sft_weight' must be at least 0, found {self.sft_weight}.")
        name = type(self.objective).__name__
        if self.sft_weight and self.objective.layout not in (Layout.PAIRED, Layout.RANKED):
            raise RecipeError(f"'sft_weight' {self.sft_weight} needs pairs or ranked responses; {name} has neither.")
        if self.sft_weight and self.objective.reads != Reads.LOGPS:
            raise RecipeError(f"'sft_weight' {self.sft_weight} needs log-probs; {name} trains a value head.")
        if self.sft_normalization not in SFT_NORMALIZATIONS:
            known = ", ".join(SFT_NORMALIZATIONS)
            raise RecipeError(f"'sft_normalization' must be one of {known}, found {self.sft_normalization!r}.")

    def parts(
        self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback
    ) -> tuple[list[Part], ObjectiveOutput]:
        """The summands of the loss, and the objective's output for the metrics."""
        if feedback.whole is not None:
            output = feedback.whole.output(policy.sums)
        else:
            output = self.objective(policy, reference, feedback)
        parts = [Part(output.losses, self.objective.per)]
        if self.sft_weight:
            first = policy.means[:, 0] if self.sft_normalization == "sequence" else policy.chosen
            per = Per.TOKEN if self.sft_normalization == "token" else Per.GROUP
            parts.append(Part(-self.sft_weight * first, per))
        return parts, output

    def total(
        self,
        policy: ResponseLogps,
        reference: ResponseLogps | None,
        feedback: Feedback,
        weights: Tensor,
        counts: dict[Per, int],
    ) -> Tensor:
        """These groups' share of the step's loss, a scalar: `weights` (G,) times losses, by the counts of the step."""
        parts, _ = self.parts(policy, reference, feedback)
        shares = [(part.values * weights).sum() / counts[part.per] for part in parts]
        return shares[0] if len(shares) == 1 else sum(shares[1:], shares[0])


def step_counts(step: Step) -> dict[Per, int]:
    return {Per.GROUP: step.global_groups, Per.TOKEN: step.global_first_tokens}


def micro_batch_loss(
    model: Any, batch: PackedBatch, loss: StepLoss, counts: dict[Per, int]
) -> tuple[Tensor, ResponseLogps]:
    """The micro-batch's share of the step's loss, to call backward on, and the detached log-probs (or scores).

    `model` is a policy (`preftune.model.policy`) or a scorer (`preftune.model.heads`), wrapped by an engine or not.
    The batch has what `preftune.train.passes.prepare_step` attaches.
    """
    weights = batch.weights * batch.row_weights
    local = loss.objective.group_local or batch.feedback.whole is not None
    if not (local and loss.objective.reads == Reads.LOGPS and torch.is_grad_enabled()):
        policy = model(batch=batch)
        total = loss.total(policy, batch.reference, batch.feedback, weights, counts)
        return total, policy.detach()

    def group_loss(sums: Tensor, groups: slice) -> Tensor:
        reference = None if batch.reference is None else batch.reference.select(groups)
        policy = ResponseLogps(sums, batch.lengths[groups])
        return loss.total(policy, reference, batch.feedback.select(groups), weights[groups], counts)

    total, sums = model(batch=batch, group_loss=group_loss)
    return total, ResponseLogps(sums.detach(), batch.lengths)


@dataclass(frozen=True)
class Packing:
    """How groups are laid out.

    share_prompt: False repeats the prompt before every response.
    padded: plan for the padded road, where a response costs the width of its group's widest.
    feed_last: feed the last token of each response too, for a value head.
    joints: pack responses and probes together as well, for a live reference.
    """

    share_prompt: bool = True
    padded: bool = False
    feed_last: bool = False
    joints: bool = True

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens that a group takes in a forward pass."""
        unfed = 0 if self.feed_last else 1
        sequences = [len(group.prompt_ids) + len(ids) - unfed for ids in group.response_ids]
        if self.padded:
            return len(sequences) * max(sequences)
        return group.packed_length(self.feed_last) if self.share_prompt else sum(sequences)


def build_step(
    groups: Sequence[TokenizedGroup],
    cut: Cut,
    *,
    rank: int = 0,
    ranks: int = 1,
    packing: Packing | None = None,
    probes: Sequence[TokenizedGroup] = (),
) -> Step:
    """Plan and pack one optimizer step for one rank. `groups` are those of all ranks together.

    `probes` are, for unpaired rows, one group each: the row's prompt and a mismatched response.
    """
    packing = packing or Packing()
    joints = [joint(group, probe) for group, probe in zip(groups, probes, strict=True)] if probes else groups
    plan = plan_step([packing.cost(group) for group in joints], cut, ranks)[rank]

    def packed(members: Sequence[TokenizedGroup]) -> tuple[PackedBatch, ...]:
        return tuple(_packed([members[index] for index in planned.groups], planned.filler, packing) for planned in plan)

    return Step(
        packed(groups),
        global_groups=len(groups),
        global_first_tokens=sum(len(group.response_ids[0]) for group in groups),
        places=tuple(planned.groups for planned in plan),
        probes=packed(probes) if probes else (),
        joints=packed(joints) if probes and packing.joints else (),
    )


def _packed(groups: Sequence[TokenizedGroup], filler: bool, packing: Packing) -> PackedBatch:
    weights = [0.0 if filler else 1.0] * len(groups)
    batch = pack(groups, share_prompt=packing.share_prompt, weights=weights, feed_last=packing.feed_last)
    if not all(group.reference for group in groups):
        return batch
    width = batch.lengths.shape[1]
    sums = [([*group.reference[: len(group.response_ids)]] + [0.0] * width)[:width] for group in groups]
    return replace(batch, reference=ResponseLogps(torch.tensor(sums), batch.lengths))


def joint(group: TokenizedGroup, probe: TokenizedGroup) -> TokenizedGroup:
    """A row with its probe behind it."""
    return TokenizedGroup(group.prompt_ids, [*group.response_ids, *probe.response_ids], group.origin)


def run_step(model: Any, step: Step, loss: StepLoss) -> Tensor:
    """Accumulate the gradients of one whole step in one process; returns the loss, a detached scalar.

    This is the plain form of what the trainer does with engines around it. The step is a prepared one
    (`preftune.train.passes.prepare_step`) where the objective needs a reference, a baseline or a first pass.
    """
    counts = step_counts(step)
    total: Tensor | None = None
    for batch in step.micro_batches:
        with straight_into_grad():
            share, _ = micro_batch_loss(model, batch, loss, counts)
            share.backward()
        total = share.detach() if total is None else total + share.detach()
    assert total is not None  # a step has at least one group
    return total
