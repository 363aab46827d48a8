"""Plots of a run's log: one PNG a chart. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One picture: which keys of the log it draws, and what its axis means."""

    name: str
    title: str
    y_label: str
    lines: tuple[tuple[str, str], ...]


CHARTS = (
    Chart("loss", "Loss", "loss (nats)", (("loss", "training"), ("eval_loss", "held out"))),
    Chart(
        "rewards",
        "Implicit rewards",
        "reward (beta x nats)",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
    ),
    Chart(
        "margins",
        "Reward margin",
        "chosen - rejected (beta x nats)",
        (("rewards/margins", "training"), ("eval_rewards/margins", "held out")),
    ),
    Chart(
        "accuracies",
        "Reward accuracy",
        "share of pairs in order",
        (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out")),
    ),
    Chart(
        "lengths",
        "Response lengths",
        "tokens",
        (("lengths/chosen", "chosen"), ("lengths/rejected", "rejected"), ("lengths/response", "response")),
    ),
    Chart(
        "logps",
        "Log-probability of the responses",
        "sum over the response (nats)",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected"), ("logps/response", "response")),
    ),
    Chart("scores", "Scores", "score", (("objective/scores", "training"), ("eval_objective/scores", "held out"))),
    Chart("kl", "Divergence from the reference", "KL of a response (nats)", (("objective/kl", "training"),)),
    Chart(
        "watch_answers",
        "Answers to the watched prompts",
        "share",
        (
            ("watch/repetition", "repeat themselves"),
            ("watch/ended", "come to an end"),
            ("watch/distinct", "distinct 2-grams"),
            ("watch/overlap", "overlap with the data's"),
        ),
    ),
    Chart(
        "watch_logps",
        "Watched responses",
        "nats per token",
        (("watch/chosen", "log-prob of the chosen ones"), ("watch/kl", "KL(start || now)")),
    ),
    Chart("throughput", "Throughput", "tokens per second", (("tokens_per_second", "tokens per second"),)),
)


def plot_log(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every chart whose keys occur in `records` (those of a `log.jsonl`) into `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in CHARTS:
        series = [(label, _points(records, key)) for key, label in chart.lines]
        series = [(label, points) for label, points in series if points]
        if series:
            drawn.append(_draw(chart, series, folder / f"{chart.name}.png"))
    return drawn


def _points(records: Sequence[Record], key: str) -> Points:
    return [(record["step"], record[key]) for record in records if record.get(key) is not None]


def _draw(chart: Chart, series: Sequence[tuple[str, Points]], path: Path) -> Path:
    # the object interface: no global figure, no display, whatever the caller has set up
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in series:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=label, marker="o", markersize=3, linewidth=1.5)
    axes.set_title(chart.title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(chart.y_label)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    figure.savefig(path, dpi=120)
    return path
