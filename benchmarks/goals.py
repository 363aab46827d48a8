"""The goals of a step beside what was measured: ratios of one run, at 8 pairs a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from plan import MemorySample, Results, StepSample
from report import markdown_table, speedups

OURS = "preftune"
GOAL_PAIRS = 8
# How many times as fast, by the other design, mix and precision.
SPEED = {
    ("trl", "chat", "bf16"): 3.5,
    ("trl", "dialogue", "bf16"): 6.0,
    ("trl", "chat", "fp32"): 2.5,
    ("trl", "dialogue", "fp32"): 4.0,
    ("liger", "chat", "bf16"): 2.0,
    ("liger", "dialogue", "bf16"): 4.0,
    ("liger", "chat", "fp32"): 2.0,
    ("liger", "dialogue", "fp32"): 4.0,
}
FLOOR = {"fp32": 0.85, "bf16": 0.60}  # needed products' time / ours
MEMORY = 1 / 3  # of TRL's, above the training state
MEMORY_VOCABULARIES = (128_000, 256_000)
MARGIN = 1 / 4  # of what a further prompt token costs the padded road

Row = list[str]


def goals_table(results: Results) -> str:
    """Every goal that this run says something about; empty where it is about none."""
    rows = [*_speed_rows(results.steps), *_floor_rows(results.steps), *_memory_rows(results.memory)]
    return markdown_table(["goal", "asked", "found", "each repetition", "reached"], rows) if rows else ""


def _speed_rows(samples: list[StepSample]) -> Iterator[Row]:
    for (other, mix, precision), bound in SPEED.items():
        ours, theirs = (_walls(samples, design, mix, precision) for design in (OURS, other))
        if ours and theirs:
            ratios = speedups(ours, theirs)
            what = f"times as fast as {other}, {mix}, {precision}"
            yield at_least(what, bound, statistics.median(ratios), ratios)


def _floor_rows(samples: list[StepSample]) -> Iterator[Row]:
    for precision, bound in FLOOR.items():
        for mix in dict.fromkeys(sample.mix for sample in samples):
            own = [s for s in samples if (s.design, s.mix, s.precision) == (OURS, mix, precision)]
            if own:
                shares = [sample.floor_wall_s / sample.wall_s for sample in own]
                yield at_least(f"fraction of the floor, {mix}, {precision}", bound, statistics.median(shares), shares)


def _memory_rows(samples: list[MemorySample]) -> Iterator[Row]:
    theirs = {(s.shape, s.vocab, s.accumulating): s.above_state_mib for s in samples if s.design == "trl"}
    for own in samples:
        key = own.shape, own.vocab, own.accumulating
        if own.design == OURS and own.vocab in MEMORY_VOCABULARIES and theirs.get(key):
            gradients = "gradients from before" if own.accumulating else "new gradients"
            what = f"memory of trl's, vocabulary {own.vocab}, {own.precision}, {gradients}"
            yield at_most(what, MEMORY, own.above_state_mib / theirs[key])


def at_least(what: str, bound: float, found: float, each: list[float]) -> Row:
    return [what, f">= {bound:.2f}", f"{found:.2f}", _listed(each), "yes" if found >= bound else "no"]


def at_most(what: str, bound: float, found: float, each: list[float] | None = None) -> Row:
    return [what, f"<= {bound:.2f}", f"{found:.2f}", _listed(each or [found]), "yes" if found <= bound else "no"]


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _walls(samples: list[StepSample], design: str, mix: str, precision: str) -> list[float]:
    return [s.wall_s for s in samples if (s.design, s.mix, s.precision) == (design, mix, precision)]
