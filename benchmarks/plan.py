"""What the driver measures, and what it has measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pool import Worker
from workload import Mix, ModelSize, Pair, exact_pairs, make_pairs

WARM_UP_PAIRS = 2


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    designs: tuple[str, ...]
    mixes: dict[str, Mix]
    precisions: tuple[str, ...]
    parts: tuple[str, ...]
    pairs: int
    repeats: int
    takes: int
    threads: int
    size: ModelSize
    large_vocabs: tuple[int, ...]
    exact_length: int

    @property
    def baseline(self) -> str:
        """What the others are compared with."""
        return "trl" if "trl" in self.designs else self.designs[-1]

    def batch(self, mix: str, repetition: int) -> list[Pair]:
        """The pairs of one repetition; 0 is the warm-up, which needs to be like the others but not as large."""
        count = self.pairs if repetition else min(self.pairs, WARM_UP_PAIRS)
        return make_pairs(self.mixes[mix], count, self.size.vocab, seed=1000 + repetition)

    def turn(self, repetition: int) -> list[str]:
        """The designs, another one first each time, so that none always follows the same neighbour."""
        start = repetition % len(self.designs)
        return [*self.designs[start:], *self.designs[:start]]


@dataclass(frozen=True)
class StepSample:
    """One design's step on one batch; `floor_*` from the rates measured in the same repetition."""

    design: str
    mix: str
    precision: str
    repetition: int
    pairs: int
    useful_tokens: int
    wall_s: float
    cpu_s: float
    floor_wall_s: float
    floor_cpu_s: float
    loss: float
    sequence_lengths: list[int]  # of chosen, then of rejected, as the design's tokeniser or collator gave them
    added_tokens: int  # of those, beyond the pairs' own: a BOS or EOS it put there
    peak_rss_mib: float


@dataclass(frozen=True)
class MemorySample:
    """Peak resident memory of one design's step in a process of its own."""

    design: str
    shape: str
    precision: str
    vocab: int
    pairs: int
    accumulating: bool  # gradients there before, left by an earlier micro-batch
    base_mib: float
    peak_mib: float
    above_state_mib: float
    peak_was_reset: bool


@dataclass
class Results:
    """Everything measured, in the order in which it was."""

    steps: list[StepSample]
    floors: list[dict]
    memory: list[MemorySample]
    versions: dict[str, dict[str, str]]
    notes: dict[str, list[str]]

    def introduce(self, design: str, worker: Worker) -> None:
        """Keep what a worker says of itself."""
        self.versions[design], self.notes[design] = worker.hello["versions"], worker.hello["notes"]


def memory_batches(plan: Plan) -> Iterator[tuple[str, int, list[Pair]]]:
    """Name, vocabulary and pairs of each batch: two pairs of exact lengths, then the first batch of each mix."""
    length = plan.exact_length
    for vocab in (plan.size.vocab, *plan.large_vocabs):
        yield f"prompt {length}, responses {length}", vocab, exact_pairs(length, length, 2, vocab)
    for mix in plan.mixes:
        yield mix, plan.size.vocab, plan.batch(mix, 1)
