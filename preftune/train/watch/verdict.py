"""From the figures of a look to the signs of a collapse, and from those to a line that says what to change.

Loss, margin and accuracy are no signs: they look best while a model dies. The limits were set on other runs than those
of `benchmarks/results/collapse.md`, where it is said on which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preftune.train.watch.measures import Measures

REPEATING = 0.25  # share of the answers by which repetition rises
NO_END = 0.3  # share of the answers by which ends become rarer
SAME = 0.5  # of the distinct 2-grams at the start that are left
SHORT, LONG = 0.4, 2.0  # times the shortest and the longest of what is expected
OFF = 0.25  # share of the overlap at the start that is lost
UNLIKELY, UNLIKELY_NATS = 2.0, 0.1  # times the nats per token of the chosen responses that are added, and at least


@dataclass(frozen=True)
class Sign:
    """name: of the measure; text: then and now."""

    name: str
    text: str


@dataclass(frozen=True)
class Settings:
    """What a line may advise to change. None: this run has no such setting."""

    learning_rate: float
    sft_weight: float | None = None
    beta: float | None = None  # of an objective that holds the policy near a reference
    chosen_length: float = 0.0  # tokens of the watched responses, cut as answers are


def signs_of(start: Measures, now: Measures, settings: Settings, best_chosen: float | None = None) -> list[Sign]:
    """The signs of a collapse between two looks; none in a run that is well.

    `best_chosen`: the highest `chosen` of the looks so far, where it is not the start's. Responses that were learnt and
    are lost again are the only sign of a model that is damaged and still fluent.
    """
    signs = []

    def sign(name: str, text: str) -> None:
        signs.append(Sign(name, text))

    if now.repetition - start.repetition >= REPEATING:
        sign("repetition", f"{now.repetition:.0%} of the answers repeat themselves ({start.repetition:.0%})")
    if start.ended - now.ended >= NO_END:
        sign("ended", f"{now.ended:.0%} of the answers come to an end ({start.ended:.0%})")
    if now.distinct < SAME * start.distinct:
        sign("distinct", f"{now.distinct:.0%} of their 2-grams are distinct ({start.distinct:.0%})")
    expected = [start.length, settings.chosen_length or start.length]
    if not SHORT * min(expected) <= now.length <= LONG * max(expected):
        sign("length", f"answers have {now.length:.1f} tokens ({start.length:.1f})")
    if now.overlap < (1 - OFF) * start.overlap:
        sign("overlap", f"their overlap with the data's is {now.overlap:.2f} ({start.overlap:.2f})")
    best = max(start.chosen, start.chosen if best_chosen is None else best_chosen)
    if best - now.chosen >= max(UNLIKELY_NATS, -UNLIKELY * best):
        was = f"{start.chosen:.2f}" + (f", {best:.2f} at best" if best > start.chosen else "")
        sign("chosen", f"chosen responses have {now.chosen:.2f} nats per token ({was})")
    return signs


def advice(settings: Settings, accuracy: float | None, share: float) -> str:
    """The likely cause and what to set.

    Args:
        settings: of the run.
        accuracy: share of the training pairs that are in order, where it is known.
        share: of the run's steps that are done.
    """
    cause = f"learning_rate {settings.learning_rate:.2g} is likely too high: try {settings.learning_rate / 3:.1g}"
    if accuracy is not None and accuracy >= 0.99 and share >= 0.5:
        cause = f"all training pairs are in order, and the run goes on: fewer epochs; or {cause}"
    more = []
    if settings.sft_weight == 0:
        more.append("sft_weight: 1 holds the chosen responses")
    if settings.beta is not None:
        more.append(f"a beta above {settings.beta:g} stays nearer to the reference")
    return "; ".join([cause, *more]) + "."


def alarm(step: int, of: int, signs: Sequence[Sign], said: str) -> str:
    """One line for the user; figures in brackets are those of the start."""
    return f"Watch, step {step} of {of}: signs of a collapse: {'; '.join(sign.text for sign in signs)}. Cause: {said}"
