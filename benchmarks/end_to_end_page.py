"""The page and the plot of end_to_end.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import report

if TYPE_CHECKING:
    from end_to_end import Recipe, Run


def render(recipe: Recipe, runs: list[Run], context: dict, data: str) -> str:
    """Markdown: times, then the accuracy of both sides at every evaluation."""
    lines = ["# One recipe, to the same accuracy", "", *report.heading(context, recipe.threads), ""]
    lines += [
        f"SimPO on {data}; {recipe.epochs} epoch(s) of steps of {recipe.batch} pairs, AdamW at "
        f"{recipe.learning_rate:g}, {recipe.schedule}, {recipe.warmup_steps} steps of warm-up, max_length "
        f"{recipe.max_length}, {recipe.precision}.",
        "",
        times_table(recipe, runs),
        "",
        f"Accuracy: held-out pairs whose chosen response has the higher reward; the target is {recipe.target:g}. "
        "Seconds to target: preparation and training up to the first evaluation there, which are not counted "
        "themselves. Tokens: of prompts and responses, each sequence with its prompt.",
        "",
        "## Accuracy by step (first repetition)",
        "",
        curves_table(runs),
        "",
        "## Versions",
        "",
    ]
    for run in _first_of_each_side(runs):
        lines.append(f"- {run.side}: {', '.join(f'{name} {version}' for name, version in run.versions.items())}")
    return "\n".join(lines) + "\n"


def times_table(recipe: Recipe, runs: list[Run]) -> str:
    """A line a side: medians over the repetitions, and how many times as fast the first side is."""
    header = ["side", "prepare s", "train s", "seconds to target", "each", "last accuracy", "tokens", "times as fast"]
    first = runs[0].side
    rows = []
    ours = _to_target(recipe, [run for run in runs if run.side == first])
    for side in dict.fromkeys(run.side for run in runs):
        own = [run for run in runs if run.side == side]
        found = _to_target(recipe, own)
        row = [side, _median([run.prepare_seconds for run in own]), _median([run.train_seconds for run in own])]
        row += [_median(found) if found else "not reached", ", ".join(f"{value:.1f}" for value in found)]
        row += [f"{statistics.median(run.curve[-1][2] for run in own):.3f}", str(own[0].tokens)]
        row.append(f"{statistics.median(found) / statistics.median(ours):.2f}" if found and ours else "-")
        rows.append(row)
    header[-1] = f"{first} is times as fast"
    return report.markdown_table(header, rows)


def curves_table(runs: list[Run]) -> str:
    """Accuracy and seconds of training of each side at each evaluation."""
    firsts = _first_of_each_side(runs)
    header = ["step", *(f"{run.side} {what}" for run in firsts for what in ("accuracy", "s"))]
    by_step = [{step: (accuracy, at) for step, at, accuracy in run.curve} for run in firsts]
    rows = []
    for step in sorted({step for points in by_step for step in points}):
        cells = [points.get(step) for points in by_step]
        texts = [text for cell in cells for text in ((f"{cell[0]:.3f}", f"{cell[1]:.1f}") if cell else ("", ""))]
        rows.append([str(step), *texts])
    return report.markdown_table(header, rows)


def plot(recipe: Recipe, runs: list[Run], path: Path) -> None:
    """Accuracy over seconds, every run a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, place = pyplot.subplots(figsize=(6.4, 4.2))
    colors = {side: f"C{number}" for number, side in enumerate(dict.fromkeys(run.side for run in runs))}
    for run in runs:
        at = [run.prepare_seconds + seconds for _, seconds, _ in run.curve]
        label = run.side if run.repetition == 1 else None
        place.plot(at, [point[2] for point in run.curve], marker=".", color=colors[run.side], label=label)
    place.axhline(recipe.target, color="grey", linestyle=":")
    place.set_xlabel("seconds of preparation and training")
    place.set_ylabel("held-out reward accuracy")
    place.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _to_target(recipe: Recipe, runs: list[Run]) -> list[float]:
    found = [run.seconds_to(recipe.target) for run in runs]
    return [value for value in found if value is not None]


def _first_of_each_side(runs: list[Run]) -> list[Run]:
    return list({run.side: run for run in reversed(runs)}.values())[::-1]


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}"
