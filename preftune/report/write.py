"""Run folders and evaluations in, one HTML page and its Markdown out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preftune.errors import RecipeError
from preftune.evaluation.files import write_text
from preftune.report.charts import pictures
from preftune.report.collect import read_evaluations, read_runs
from preftune.report.page import TRAINING, Report, to_html, to_markdown
from preftune.report.tables import cost_tables, evaluation_tables, run_tables


def build_report(
    runs: Sequence[str | Path],
    evaluations: Sequence[str | Path] = (),
    *,
    title: str | None = None,
    prices: Sequence[float] | None = None,
) -> Report:
    """Read everything.

    Args:
        runs: run folders.
        evaluations: files that `preftune eval ... --json` printed, answers of `regress`, folders of `run`.
        prices: of a million tokens that a judge read and wrote.

    Raises:
        DataError: a folder or a file is not such.
        RecipeError: there is nothing to report.
    """
    if not runs and not evaluations:
        raise RecipeError("There is nothing to report. Give a run folder, or an evaluation with --eval.")
    trained, found = read_runs(runs), read_evaluations(evaluations)
    names = ", ".join(run.name for run in trained) or "Evaluations"
    return Report(
        title=title or names,
        tables={
            TRAINING: run_tables(trained),
            "Evaluations": evaluation_tables(found),
            "Cost": cost_tables(trained, found.judgings, prices),
        },
        pictures=pictures(trained) if trained else [],
        samples=[run.samples for run in trained if run.samples] + found.samples,
    )


def write_report(report: Report, output: str | Path) -> list[Path]:
    """The page at `output`, its Markdown beside it; returns both.

    Raises:
        DataError: they cannot be written.
    """
    page = Path(output)
    if page.suffix not in (".html", ".htm"):
        raise RecipeError(f"--output: expected a name that ends in .html, found '{page.name}'.")
    written = [page, page.with_suffix(".md")]
    for path, text in zip(written, (to_html(report), to_markdown(report)), strict=True):
        write_text(path, text)
    return written
