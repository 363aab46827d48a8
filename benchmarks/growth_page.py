"""The page and the plot of growth.py: curves along each axis, and what a further token costs (their slopes)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import report
from goals import MARGIN, OURS, at_most

if TYPE_CHECKING:
    from growth import GrowthPlan, GrowthSample

NAMES = {
    "prompt": "prompt tokens",
    "response": "tokens of a response",
    "vocab": "vocabulary",
    "pairs": "pairs",
    "ranks": "ranks",
}
PADDED_ROADS = ("padded", "trl", "liger", "naive")


def render(plan: GrowthPlan, samples: list[GrowthSample], context: dict) -> str:
    """Markdown: one table an axis, then the margins with their goal."""
    lines = ["# Growth of one optimizer step", "", *report.heading(context, plan.threads), ""]
    lines += [
        f"Llama, hidden {plan.size.hidden}, {plan.size.layers} layers; {plan.precision}; exact lengths, best of "
        f"{plan.repeats}; memory above weights, gradients and moments. {_what_stands_still(plan)}",
        "",
    ]
    for axis in dict.fromkeys(point.axis for point in plan.points):
        own = [sample for sample in samples if sample.point.axis == axis]
        lines += [f"## {NAMES[axis].capitalize()}", "", axis_table(axis, own), ""]
    margins = margins_table(samples)
    if margins:
        lines += ["## What one more costs", "", margins, ""]
        lines += [
            "Slopes of straight lines through the points; a token counts once a pair, a response token twice.",
            "",
        ]
    goals = [
        at_most(f"cost of a prompt token, of {other}'s", MARGIN, ours / theirs)
        for other, ours, theirs in prompt_costs(samples)
    ]
    if goals:
        header = ["goal", "asked", "found", "each repetition", "reached"]
        lines += ["## Goals", "", report.markdown_table(header, goals), ""]
    return "\n".join(lines)


def _what_stands_still(plan: GrowthPlan) -> str:
    still = []
    for name in ("prompt", "response", "vocab", "pairs"):
        values = {getattr(point, name) for point in plan.points if point.axis not in (name, "ranks")}
        still += [f"{NAMES[name]} {value}" for value in sorted(values)]
    return f"What stands still: {', '.join(still)}." if still else ""


def axis_table(axis: str, samples: list[GrowthSample]) -> str:
    """One row a point, seconds and MiB of each design."""
    designs = list(dict.fromkeys(sample.design for sample in samples))
    header = [NAMES[axis], *(f"{design} s" for design in designs), *(f"{design} MiB" for design in designs)]
    if axis == "ranks":
        header = [NAMES[axis], "pairs", "s", "pairs/s"]
        cells = [(s.point.ranks, s.point.ranks * s.point.pairs, s.best) for s in samples]
        return report.markdown_table(header, [[str(r), str(n), f"{t:.3g}", f"{n / t:.3g}"] for r, n, t in cells])
    rows = []
    for at in dict.fromkeys(sample.point.at for sample in samples):
        here = {sample.design: sample for sample in samples if sample.point.at == at}
        times = [f"{here[design].best:.3g}" for design in designs]
        rows.append([str(at), *times, *(f"{here[design].above_state_mib:.0f}" for design in designs)])
    return report.markdown_table(header, rows)


def margins_table(samples: list[GrowthSample]) -> str:
    """Milliseconds and KiB that one more token, word or pair costs each design."""
    designs = list(dict.fromkeys(sample.design for sample in samples))
    rows = []
    for axis in ("prompt", "response", "vocab", "pairs"):
        if not any(sample.point.axis == axis for sample in samples):
            continue
        times = [1e3 * slope(samples, design, axis, "seconds") for design in designs]
        sizes = [1024 * slope(samples, design, axis, "memory") for design in designs]
        unit = "one more pair" if axis == "pairs" else f"one more of {NAMES[axis]}"
        rows.append([unit, *(f"{value:.3g}" for value in times), *(f"{value:.3g}" for value in sizes)])
    header = ["", *(f"{design} ms" for design in designs), *(f"{design} KiB" for design in designs)]
    return report.markdown_table(header, rows) if rows else ""


def prompt_costs(samples: list[GrowthSample]) -> list[tuple[str, float, float]]:
    """Name, our seconds and theirs a prompt token, for every padded design that was measured."""
    present = {sample.design for sample in samples if sample.point.axis == "prompt"}
    if OURS not in present:
        return []
    ours = slope(samples, OURS, "prompt", "seconds")
    found = [(other, ours, slope(samples, other, "prompt", "seconds")) for other in PADDED_ROADS if other in present]
    return [(other, ours, theirs) for other, ours, theirs in found if theirs > 0]


def slope(samples: list[GrowthSample], design: str, axis: str, what: str) -> float:
    """Least squares over the axis: seconds, or MiB, for one more token (of each pair), word or pair."""
    own = [sample for sample in samples if sample.design == design and sample.point.axis == axis]
    xs = [float(sample.point.at * (sample.point.pairs if axis in ("prompt", "response") else 1)) for sample in own]
    ys = [sample.best if what == "seconds" else float(sample.above_state_mib or 0.0) for sample in own]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def plot(samples: list[GrowthSample], path: Path) -> None:
    """Seconds above, MiB below, one column an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(sample.point.axis for sample in samples))
    figure, grid = pyplot.subplots(2, len(axes), figsize=(3.6 * len(axes), 6.4), squeeze=False)
    for column, axis in enumerate(axes):
        own = [sample for sample in samples if sample.point.axis == axis]
        for design in dict.fromkeys(sample.design for sample in own):
            points = [sample for sample in own if sample.design == design]
            at = [sample.point.at for sample in points]
            grid[0][column].plot(at, [sample.best for sample in points], marker="o", label=design)
            if axis != "ranks":
                grid[1][column].plot(at, [sample.above_state_mib for sample in points], marker="o", label=design)
        for row, unit in enumerate(("seconds a step", "MiB above the training state")):
            place = grid[row][column]
            place.set_xlabel(NAMES[axis])
            place.set_ylabel(unit)
            place.set_ylim(bottom=0)
            place.set_visible(not (axis == "ranks" and row))
    grid[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
