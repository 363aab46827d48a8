"""The demo's report: `samples.md`, and tables for the terminal and the model card.

In: plain values (sample answers, figures as dicts). Out: text and tables. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

SetFigures = Mapping[str, Mapping[str, float]]  # figures by question set

FIGURES = {  # key -> heading
    "zh_share": "Chinese",
    "correct": "correct",
    "correct_zh_ref": "zh ref.",
    "repetition": "repeating",
    "mean_tokens": "tokens",
}
SETS = {
    "heldout": "held-out facts",
    "heldout_sampled": "the same, sampled",
    "strict": "phrasing in no pair",
    "unseen": "phrasing new to SFT",
    "trained": "facts of the pairs",
}
LEGEND = (
    "Share of the answers, in per cent, before and after. Greedy; sampled: at temperature 1. Correct: the key words of "
    "the fact are there, in the answer's own language; zh ref.: those of the Chinese reference. Repeating: no end in "
    "64 tokens, or under 70 % distinct 4-grams. The phrasings are of held-out facts, which are in no pair."
)


@dataclass(frozen=True)
class Sample:
    """One question with the greedy answer before and after preference training."""

    question: str
    before: str
    after: str


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


def figures_table(before: SetFigures, after: SetFigures) -> Table:
    """A terminal table, 80 columns wide: a line for each question set, before and after for each figure."""
    table = Table(title="Before and after SimPO", caption=LEGEND, box=SIMPLE, padding=0)
    for heading in ("questions", *FIGURES.values()):
        table.add_column(heading, justify="left" if heading == "questions" else "right", no_wrap=True)
    for title, _, *cells in _rows(before, after):
        table.add_row(title, *(cell.replace(" ", "") for cell in cells))
    return table


def samples_table(samples: Sequence[Sample], title: str) -> Table:
    """A terminal table of answers side by side."""
    table = Table(title=title)
    for column in ("question", "before", "after"):
        table.add_column(column, overflow="fold")
    for sample in samples:
        table.add_row(*(_plain(text) for text in (sample.question, sample.before, sample.after)))
    return table


def figures_markdown(before: SetFigures, after: SetFigures) -> str:
    """The same table in Markdown, for the model card."""
    headings = ["questions", "n", *FIGURES.values()]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(before, after)]
    return "\n".join([*lines, "", LEGEND])


def _rows(before: SetFigures, after: SetFigures) -> list[list[str]]:
    return [
        [
            title,
            str(int(after[name]["questions"])),
            *(f"{_number(key, before[name][key])} → {_number(key, after[name][key])}" for key in FIGURES),
        ]
        for name, title in SETS.items()
        if name in before and name in after
    ]


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
    return f"{value:.1f}" if key == "mean_tokens" else f"{100 * value:.1f}"
