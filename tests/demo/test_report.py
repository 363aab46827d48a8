"""The demo's report is a function of plain values."""

from __future__ import annotations

import io

from rich.console import Console

from preftune.demo.report import (
    FIGURES,
    Sample,
    figures_markdown,
    figures_table,
    samples_markdown,
    samples_table,
    write_samples,
)

SAMPLES = [Sample("Who are you?", "I am a | b.", "我是小桥。"), Sample("你好！", "", "你好，我能帮你什么？")]
BEFORE = {"heldout": {"questions": 4, **dict.fromkeys(FIGURES, 0.5)}}
AFTER = {"heldout": {"questions": 4, **dict.fromkeys(FIGURES, 0.975)}}


def printed(table) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_samples_stand_side_by_side():
    page = samples_markdown(SAMPLES[:1], SAMPLES[1:])
    assert "| Who are you? | I am a \\| b. | 我是小桥。 |" in page
    assert "| 你好！ | (empty) | 你好，我能帮你什么？ |" in page
    assert page.index("## Fixed questions") < page.index("Who are you?") < page.index("## Held-out questions")


def test_samples_are_written_as_utf8(tmp_path):
    path = write_samples(tmp_path / "run" / "samples.md", SAMPLES, SAMPLES)
    assert "我是小桥。" in path.read_text(encoding="utf-8")


def test_the_table_shows_before_and_after():
    text = printed(figures_table(BEFORE, AFTER))
    assert "held-out facts" in text
    assert "50.0→97.5" in text


def test_the_markdown_figures_have_one_line_a_set():
    lines = figures_markdown(BEFORE, AFTER).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 3
    assert "50.0 → 97.5" in lines[2]


def test_answers_are_shown_as_they_are_in_the_terminal():
    assert "[bold]x" in printed(samples_table([Sample("q", "[bold]x", "y")], "answers"))
