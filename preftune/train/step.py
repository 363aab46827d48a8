"""What one optimizer step means: the loss of a micro-batch and its part of the step's mean. No Trainer, no accelerate.

Losses are summed over groups and divided once by the counts of the whole step over all ranks, so the gradient and the
metrics do not depend on how the step was cut. Engines average gradients over ranks; whoever drives them multiplies by
the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune.data.pack import pack
from preftune.data.plan import Cut, plan_step
from preftune.errors import RecipeError
from preftune.objectives.base import Objective, Per
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
        if self.sft_weight and self.objective.layout not in (Layout.PAIRED, Layout.RANKED):
            name = type(self.objective).__name__
            raise RecipeError(f"'sft_weight' {self.sft_weight} needs pairs or ranked responses; {name} has neither.")
        if self.sft_normalization not in SFT_NORMALIZATIONS:
            known = ", ".join(SFT_NORMALIZATIONS)
            raise RecipeError(f"'sft_normalization' must be one of {known}, found {self.sft_normalization!r}.")

    def parts(
        self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback
    ) -> tuple[list[Part], ObjectiveOutput]:
        """The summands of the loss, and the objective's output for the metrics."""
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
        """These groups' share of the step's loss, a scalar."""
        parts, _ = self.parts(policy, reference, feedback)
        shares = [(part.values * weights).sum() / counts[part.per] for part in parts]
        return shares[0] if len(shares) == 1 else sum(shares[1:], shares[0])


def step_counts(step: Step) -> dict[Per, int]:
    return {Per.GROUP: step.global_groups, Per.TOKEN: step.global_first_tokens}


def micro_batch_loss(
    model: Any, batch: PackedBatch, loss: StepLoss, counts: dict[Per, int]
) -> tuple[Tensor, ResponseLogps]:
    """The micro-batch's share of the step's loss, to call backward on, and the detached log-probs.

    `model` is a policy (`preftune.model.policy`), wrapped by an engine or not.
    """
    if not (loss.objective.group_local and torch.is_grad_enabled()):
        policy = model(batch=batch)
        total = loss.total(policy, batch.reference, batch.feedback, batch.weights, counts)
        return total, policy.detach()

    def group_loss(sums: Tensor, groups: slice) -> Tensor:
        reference = None if batch.reference is None else batch.reference.select(groups)
        policy = ResponseLogps(sums, batch.lengths[groups])
        return loss.total(policy, reference, batch.feedback.select(groups), batch.weights[groups], counts)

    total, sums = model(batch=batch, group_loss=group_loss)
    return total, ResponseLogps(sums.detach(), batch.lengths)


def build_step(
    groups: Sequence[TokenizedGroup],
    cut: Cut,
    *,
    rank: int = 0,
    ranks: int = 1,
    share_prompt: bool = True,
    padded: bool = False,
) -> Step:
    """Plan and pack one optimizer step for one rank. `groups` are those of all ranks together.

    `padded` plans for the padded road, where a response costs the width of its group's widest.
    """
    plan = plan_step([_cost(group, share_prompt, padded) for group in groups], cut, ranks)[rank]
    batches = tuple(
        pack(
            [groups[index] for index in planned.groups],
            share_prompt=share_prompt,
            weights=[0.0 if planned.filler else 1.0] * len(planned.groups),
        )
        for planned in plan
    )
    first_tokens = sum(len(group.response_ids[0]) for group in groups)
    return Step(batches, global_groups=len(groups), global_first_tokens=first_tokens)


def _cost(group: TokenizedGroup, share_prompt: bool, padded: bool) -> int:
    """Tokens that a group takes in a forward pass."""
    sequences = [len(group.prompt_ids) + len(ids) - 1 for ids in group.response_ids]
    if padded:
        return len(sequences) * max(sequences)
    return group.packed_length() if share_prompt else sum(sequences)


def run_step(model: Any, step: Step, loss: StepLoss) -> Tensor:
    """Accumulate the gradients of one whole step in one process; returns the loss, a detached scalar.

    This is the plain form of what the trainer does with engines around it.
    """
    counts = step_counts(step)
    total: Tensor | None = None
    for batch in step.micro_batches:
        share, _ = micro_batch_loss(model, batch, loss, counts)
        share.backward()
        total = share.detach() if total is None else total + share.detach()
    assert total is not None  # a step has at least one group
    return total
