"""The demo's report is a function of plain values."""

from __future__ import annotations

import io
import subprocess
import sys

from rich.console import Console

from preftune.demo.report import (
    FIGURE_ROWS,
    Sample,
    figures_markdown,
    figures_table,
    plot_log,
    samples_markdown,
    samples_table,
    write_samples,
)

SAMPLES = [Sample("Who are you?", "I am a | b.", "我是小桥。"), Sample("你好！", "", "你好，我能帮你什么？")]
BEFORE = {"heldout": {"questions": 4, **{key: 0.5 for key, _ in FIGURE_ROWS}}}
AFTER = {"heldout": {"questions": 4, **{key: 0.975 for key, _ in FIGURE_ROWS}}}


def printed(table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
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


def test_plots_are_drawn_for_the_keys_that_were_logged(tmp_path):
    records = [
        {"step": step, "loss": 1 / step, "rewards/chosen": -0.1, "rewards/rejected": -step, "rewards/margins": step}
        for step in range(1, 5)
    ]
    drawn = plot_log([*records, {"step": 5, "eval_loss": 1.0}, {"note": "no step"}], tmp_path / "plots")
    assert [path.name for path in drawn] == ["loss.png", "rewards.png", "margins.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_an_empty_log_draws_nothing(tmp_path):
    assert plot_log([], tmp_path) == []


def test_the_table_shows_before_and_after():
    text = printed(figures_table(BEFORE, AFTER))
    assert "held-out facts, greedy (n = 4)" in text
    assert "0.500" in text
    assert "0.975" in text


def test_the_markdown_figures_have_one_line_a_set():
    lines = figures_markdown(BEFORE, AFTER).splitlines()
    assert len(lines) == 3
    assert "0.500 -> 0.975" in lines[2]


def test_answers_are_shown_as_they_are_in_the_terminal():
    assert "[bold]x" in printed(samples_table([Sample("q", "[bold]x", "y")], "answers"))


def test_importing_the_report_does_not_import_matplotlib_or_torch():
    code = "import sys, preftune.demo.report; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
