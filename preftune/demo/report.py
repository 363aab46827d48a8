"""The demo's report: `samples.md`, `plots/*.png` and a table for the terminal.

In: plain values (log records as in `log.jsonl`, sample answers, figures as dicts). Out: files, text, a table. Nothing
here loads a model or looks at a run folder; matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]

FIGURE_ROWS = (
    ("zh_share", "answers in Chinese"),
    ("correct", "correct, in the answer's language"),
    ("correct_zh_ref", "correct, against the Chinese reference"),
    ("exact", "equal to a reference"),
    ("repetition", "repetition"),
    ("mean_tokens", "mean length (tokens)"),
    ("mean_tokens_zh", "mean length of Chinese answers (tokens)"),
    ("mean_tokens_en", "mean length of English answers (tokens)"),
)
SET_NAMES = {
    "heldout": "held-out facts, greedy",
    "heldout_sampled": "held-out facts, sampled at temperature 1",
    "strict": "held-out facts in a phrasing of no pair, greedy",
    "unseen": "held-out facts in a phrasing SFT never saw, greedy",
    "trained": "facts of the pairs, greedy",
}


@dataclass(frozen=True)
class Sample:
    """One question with the greedy answer before and after preference training."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Chart:
    """One picture: which keys of the log it draws, and what its axis means."""

    name: str
    title: str
    y_label: str
    lines: tuple[tuple[str, str], ...]


CHARTS = (
    Chart("loss", "Training loss", "loss (nats)", (("loss", "loss"),)),
    Chart(
        "rewards",
        "Implicit rewards",
        "reward (beta x nats per token)",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
    ),
    Chart(
        "margins",
        "Reward margin",
        "chosen - rejected (beta x nats per token)",
        (("rewards/margins", "margin"),),
    ),
    Chart("accuracies", "Reward accuracy", "share of pairs in order", (("rewards/accuracies", "accuracy"),)),
    Chart(
        "lengths",
        "Response lengths in the batch",
        "tokens",
        (("lengths/chosen", "chosen"), ("lengths/rejected", "rejected")),
    ),
    Chart(
        "logps",
        "Log-probability of the responses",
        "sum over the response (nats)",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
    ),
    Chart("throughput", "Throughput", "tokens per second", (("tokens_per_second", "tokens per second"),)),
)


def write_samples(path: Path, fixed: Sequence[Sample], heldout: Sequence[Sample]) -> Path:
    """Write `samples.md` at `path`, making its folder when absent. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(samples_markdown(fixed, heldout), encoding="utf-8")
    return path


def samples_markdown(fixed: Sequence[Sample], heldout: Sequence[Sample]) -> str:
    """The page of answers before and after, side by side."""
    parts = [
        "# Answers before and after SimPO",
        "Greedy answers. *Before* is the model after SFT on both languages, *after* the same model after SimPO.",
        "## Fixed questions",
        "The same in every run; some of their facts may be in the pairs.",
        _samples_table(fixed),
        "## Held-out questions",
        "Their facts are in no pair: nothing told the model to answer these in Chinese.",
        _samples_table(heldout),
    ]
    return "\n\n".join(parts) + "\n"


def plot_log(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every chart whose keys occur in `records` into `folder`, as PNG. Returns the files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in CHARTS:
        series = [(label, _series(records, key)) for key, label in chart.lines]
        series = [(label, points) for label, points in series if points]
        if series:
            drawn.append(_draw(chart, series, folder / f"{chart.name}.png"))
    return drawn


def figures_table(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> Table:
    """A terminal table of the figures of each question set, before and after; `before[set][figure]`."""
    table = Table(title="Before and after SimPO")
    table.add_column("questions")
    table.add_column("figure")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name in [name for name in SET_NAMES if name in before and name in after]:
        heading = f"{SET_NAMES[name]} (n = {int(after[name]['questions'])})"
        for key, label in FIGURE_ROWS:
            table.add_row(heading, label, _number(key, before[name][key]), _number(key, after[name][key]))
            heading = ""
        table.add_section()
    return table


def samples_table(samples: Sequence[Sample], title: str) -> Table:
    """A terminal table of answers side by side."""
    table = Table(title=title)
    for column in ("question", "before", "after"):
        table.add_column(column, overflow="fold")
    for sample in samples:
        table.add_row(*(_plain(text) for text in (sample.question, sample.before, sample.after)))
    return table


def figures_markdown(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> str:
    """The figures as a Markdown table, for the model card: one line a question set, `before -> after`."""
    keys = ("zh_share", "correct", "correct_zh_ref", "exact", "repetition", "mean_tokens")
    lines = ["| questions | n | " + " | ".join(dict(FIGURE_ROWS)[key] for key in keys) + " |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    for name in [name for name in SET_NAMES if name in before and name in after]:
        cells = [f"{_number(key, before[name][key])} -> {_number(key, after[name][key])}" for key in keys]
        lines.append(f"| {SET_NAMES[name]} | {int(after[name]['questions'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _samples_table(samples: Sequence[Sample]) -> str:
    lines = ["| question | before | after |", "|---|---|---|"]
    lines += [f"| {_cell(item.question)} | {_cell(item.before)} | {_cell(item.after)} |" for item in samples]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(text.replace("|", "\\|").split()) or "(empty)"


def _plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", "\\[")


def _number(key: str, value: float) -> str:
    return f"{value:.1f}" if key.startswith("mean_tokens") else f"{value:.3f}"


def _series(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    return [(record["step"], record[key]) for record in records if record.get(key) is not None and "step" in record]


def _draw(chart: Chart, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], path: Path) -> Path:
    # The object interface: no global figure, no display, whatever the caller has set up.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
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
