"""The values that flow along the road: example, token group, packed batch, log-probs, objective output.

Shape letters: G groups, K responses per group, S = G*K sequences, T packed tokens, N scored tokens.
Log-probabilities are natural logarithms (nats), float32 unless the model computes in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(StrEnum):
    """How many responses a group has, and what they mean to each other."""

    SINGLE = "single"  # K = 1: the answer to imitate
    PAIRED = "paired"  # K = 2: chosen, rejected
    UNPAIRED = "unpaired"  # K = 1 and a mismatched probe
    RANKED = "ranked"  # any K, best first
    PROMPT = "prompt"  # K = 0: what responses are sampled to


@dataclass(frozen=True)
class Origin:
    """Where a row came from, for error messages. `row` counts from 1, as editors count lines."""

    dataset: str
    split: str
    row: int

    def __str__(self) -> str:
        return f"{self.dataset}[{self.split}] row {self.row}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    `tool_calls` of an assistant's turn is the JSON text of a list of `{id, type, function: {name, arguments}}`;
    `tool_call_id` and `name` of a tool's turn say which call it answers. Empty where there is none.
    """

    role: str
    content: str
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Example:
    """One prompt and K responses, as text.

    `prompt` is a conversation that ends before the answer. `responses` are the final assistant turns, best first
    (chosen, rejected). `scores` are empty or one number a response; of an unpaired row, 1 for desirable and 0 for
    undesirable. `weight` multiplies the row's loss. `tools` is the JSON text of the list of tools, empty without any.
    `no_system`: the row says itself that it has no system text, so the run's does not stand in for it.
    """

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    origin: Origin
    scores: tuple[float, ...] = ()
    weight: float = 1.0
    tools: str = ""
    no_system: bool = False

    def pick(self, *places: int, scores: tuple[float, ...] | None = None) -> Example:
        """The example with these of its responses, and their scores or the given ones; all else stays."""
        own = tuple(self.scores[place] for place in places) if self.scores else ()
        return replace(
            self,
            responses=tuple(self.responses[place] for place in places),
            scores=own if scores is None else scores,
        )


@dataclass(frozen=True)
class TokenizedGroup:
    """One prompt and K responses as token ids. Every prompt has at least one token, every response at least one.

    `scores` are empty or one number a response; of an unpaired row, 1 for desirable and 0 for undesirable.
    `weight` multiplies the group's loss, see `PackedBatch.row_weights`.
    `reference` is empty or one log-prob a response (nats, summed over tokens), precomputed under the reference model;
    of an unpaired row then follows that of its probe, for every epoch.
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    origin: Origin
    scores: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    weight: float = 1.0

    def shared_length(self, feed_last: bool = False) -> int:
        """Tokens at the front that all responses have in common and that are fed to the model once.

        The prompt, and the opening that the responses share. The last token of a response predicts nothing, so it is
        fed only if `feed_last`, to a value head: else a response of one token needs nothing beyond the prompt.
        """
        shortest = min(len(ids) for ids in self.response_ids) - (not feed_last)
        first = self.response_ids[0]
        opening = 0
        while opening < shortest and all(ids[opening] == first[opening] for ids in self.response_ids):
            opening += 1
        return len(self.prompt_ids) + opening

    def packed_length(self, feed_last: bool = False) -> int:
        """Tokens this group occupies in a packed row."""
        shared = self.shared_length(feed_last)
        unfed = 0 if feed_last else 1
        return shared + sum(len(self.prompt_ids) + len(ids) - unfed - shared for ids in self.response_ids)


class Tree(NamedTuple):
    """Where one group lies in the packed row: `shared` tokens from `start`, then each branch in turn.

    A branch attends to the shared tokens and to itself; branches do not see each other. A branch may be empty.
    """

    start: int
    shared: int
    branches: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.shared + sum(self.branches)


@dataclass(frozen=True)
class WholeStep:
    """What an objective that looks at all groups of a step said of them, at log-probs `sums` (G, K).

    losses (G,), slopes (G, K) of the step's total by each sum, rewards (G, K), terms (G,).
    """

    sums: Tensor
    losses: Tensor
    slopes: Tensor
    rewards: Tensor
    terms: dict[str, Tensor]

    def select(self, groups: slice | Tensor) -> WholeStep:
        terms = {name: term[groups] for name, term in self.terms.items()}
        return WholeStep(self.sums[groups], self.losses[groups], self.slopes[groups], self.rewards[groups], terms)

    def output(self, sums: Tensor) -> ObjectiveOutput:
        """Losses at `sums` to first order: value and gradient are exact where the sums are those of the first pass."""
        return ObjectiveOutput(self.losses + (self.slopes * (sums - self.sums)).sum(dim=1), self.rewards, self.terms)


@dataclass(frozen=True)
class Feedback:
    """What is known of the responses beside their tokens.

    scores (G, K) float32, all 0 where none are known; of unpaired rows, above 0 for desirable;
    valid (G, K) bool, False where a ranked group has fewer than K responses;
    baseline () is one number for all groups: KTO's reference point z, BCO's reward shift;
    whole is there in the second pass of an objective that looks at all groups of the step.
    """

    scores: Tensor
    valid: Tensor
    baseline: Tensor | None = None
    whole: WholeStep | None = None

    def better(self) -> Tensor:
        """(G, K, K) bool: response i is better than j, by scores; by order where those of a group do not differ."""
        both = self.valid[:, :, None] & self.valid[:, None, :]
        by_score = (self.scores[:, :, None] > self.scores[:, None, :]) & both
        by_order = both.triu(diagonal=1)
        return torch.where(by_score.any(dim=(1, 2))[:, None, None], by_score, by_order)

    def select(self, groups: slice) -> Feedback:
        whole = None if self.whole is None else self.whole.select(groups)
        return Feedback(self.scores[groups], self.valid[groups], self.baseline, whole)

    def to(self, device: torch.device | str) -> Feedback:
        baseline = None if self.baseline is None else self.baseline.to(device)
        scores, valid = self.scores.to(device, non_blocking=True), self.valid.to(device, non_blocking=True)
        return Feedback(scores, valid, baseline, self.whole)


@dataclass(frozen=True)
class ResponseLogps:
    """Log-probability of each response given its prompt: `sums` (G, K) in nats and `lengths` (G, K) int64 in tokens."""

    sums: Tensor
    lengths: Tensor

    @property
    def means(self) -> Tensor:
        """(G, K) nats per token; 0 where a ranked group has no such response."""
        return self.sums / self.lengths.clamp(min=1)

    @property
    def chosen(self) -> Tensor:
        return self.sums[:, 0]

    @property
    def rejected(self) -> Tensor:
        return self.sums[:, 1]

    def select(self, groups: slice) -> ResponseLogps:
        return ResponseLogps(self.sums[groups], self.lengths[groups])

    def detach(self) -> ResponseLogps:
        return ResponseLogps(self.sums.detach(), self.lengths)

    def to(self, device: torch.device | str) -> ResponseLogps:
        return ResponseLogps(self.sums.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


@dataclass(frozen=True)
class ObjectiveOutput:
    """losses (G,) not reduced; rewards (G, K) detached; terms: further (G,) values worth logging."""

    losses: Tensor
    rewards: Tensor
    terms: dict[str, Tensor]

    def __init__(self, losses: Tensor, rewards: Tensor, terms: dict[str, Tensor] | None = None) -> None:
        object.__setattr__(self, "losses", losses)
        object.__setattr__(self, "rewards", rewards)
        object.__setattr__(self, "terms", terms or {})


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: groups laid end to end in one row, without padding.

    input_ids, position_ids (1, T) int64; trees says which tokens see which.
    scored (N,) index into T of the state that predicts target i; targets (N,) token ids; owner (N,) response number
    in [0, S). Targets are ordered group by group, response by response. lengths (G, K) int64.
    weights (G,) float32: 1, or 0 for a filler that keeps the ranks in step.
    row_weights (G,) float32: what the loss of each group is multiplied by, 1 where the data says nothing. The divisor
    stays the plain count of the step: a group of weight 2 pulls as if it stood there twice, whatever its neighbours
    weigh, and a step of light groups is a small step. Metrics but the loss leave it out.
    rows_per_group: scored tokens of each group, on the host, so that cutting needs no device read.
    ends (S,): index into T of the state of each response's last token, group by group, response by response, 0 where a
    ranked group has a gap; None where that token is not fed.
    """

    input_ids: Tensor
    position_ids: Tensor
    trees: tuple[Tree, ...]
    scored: Tensor
    targets: Tensor
    owner: Tensor
    lengths: Tensor
    feedback: Feedback
    weights: Tensor
    row_weights: Tensor
    rows_per_group: tuple[int, ...]
    origins: tuple[Origin, ...]
    reference: ResponseLogps | None = None
    ends: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> PackedBatch:
        if self.input_ids.device == torch.device(device):
            return self
        names = ("input_ids", "position_ids", "scored", "targets", "owner", "lengths", "weights", "row_weights")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        reference = None if self.reference is None else self.reference.to(device)
        ends = None if self.ends is None else self.ends.to(device, non_blocking=True)
        return replace(self, **moved, feedback=self.feedback.to(device), reference=reference, ends=ends)


@dataclass(frozen=True)
class Step:
    """One whole optimizer step of one rank: its micro-batches, and the divisors counted over all ranks.

    places: for each micro-batch, the numbers of its groups in the step.
    probes, joints: of unpaired rows, for each micro-batch: `[prompt | mismatched response]`, and for a live reference
    `[prompt | response | mismatched response]`.
    """

    micro_batches: tuple[PackedBatch, ...]
    global_groups: int
    global_first_tokens: int  # tokens of the first (chosen) responses, the divisor of token-mean terms
    places: tuple[tuple[int, ...], ...] = ()
    probes: tuple[PackedBatch, ...] = ()
    joints: tuple[PackedBatch, ...] = ()

    def to(self, device: torch.device | str) -> Step:
        def moved(batches: tuple[PackedBatch, ...]) -> tuple[PackedBatch, ...]:
            return tuple(batch.to(device) for batch in batches)

        return replace(
            self, micro_batches=moved(self.micro_batches), probes=moved(self.probes), joints=moved(self.joints)
        )
