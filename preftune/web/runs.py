"""Runs as the page shows them: curves, newest log lines, watched answers, recipe and report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from preftune.train.checkpoint import ANSWERS, LOG, SUMMARY
from preftune.train.plots import CHARTS
from preftune.train.record import read_log
from preftune.web.places import Places, inside

POINTS, LINES, ROWS = 600, 40, 8  # of a curve; newest of the log; watched prompts
LONGEST = 200_000  # characters of a text file
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "eval_loss", "eval_rewards/accuracies", "objective/scores")
TEXTS = {"recipe": "recipe.yaml", "report": "README.md", "samples": "samples.md"}


def list_runs(places: Places) -> list[dict[str, Any]]:
    """Every run with its newest figures."""
    return [{"name": name, **_head(folder, _log(folder))} for name, folder in places.run_folders().items()]


def show_run(folder: Path) -> dict[str, Any]:
    """All of one run. `charts`: those of the run's plots whose figures were logged."""
    records = _log(folder)
    return {
        **_head(folder, records),
        "charts": charts(records),
        "log": [_line(record) for record in records[-LINES:]],
        "answers": watched(folder),
        **{name: _text(folder, file) for name, file in TEXTS.items()},
    }


def charts(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, title, unit and lines (label, points) of every chart that has some."""
    found = []
    for chart in CHARTS:
        lines = [{"label": label, "points": _points(records, key)} for key, label in chart.lines]
        lines = [line for line in lines if line["points"]]
        if lines:
            found.append({"name": chart.name, "title": chart.title, "unit": chart.y_label, "lines": lines})
    return found


def watched(folder: Path) -> list[dict[str, Any]]:
    """Prompts that were answered while the model trained: `steps` and `answers` of the first look and the last."""
    path = inside(folder, ANSWERS)
    looks = read_log(path) if path is not None else []
    looks = [look for look in looks if _is_look(look)]
    if not looks:
        return []
    first, last = looks[0], looks[-1]
    shown = zip(first["answers"][:ROWS], last["answers"][:ROWS], strict=False)
    return [
        {
            "prompt": str(before.get("prompt", "")),
            "steps": [first.get("step"), last.get("step")],
            "answers": [str(before.get("answer", "")), str(after.get("answer", ""))],
        }
        for before, after in shown
    ]


def _is_look(value: Any) -> bool:
    """Whether a line is as the watch writes it: the file may be anybody's."""
    answers = value.get("answers") if isinstance(value, dict) else None
    return isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers) and _has_step(value)


def _has_step(record: dict[str, Any]) -> bool:
    return isinstance(record.get("step"), int)


def _log(folder: Path) -> list[dict[str, Any]]:
    path = inside(folder, LOG)
    if path is None:
        return []
    state = path.stat()
    return _records(path, state.st_mtime_ns, state.st_size)


@lru_cache(256)
def _records(path: Path, changed: int, size: int) -> list[dict[str, Any]]:
    """Read once for each state of the file: the page asks every few seconds for all runs."""
    records = read_log(path)
    return [record for record in records if isinstance(record, dict) and _has_step(record)]


def _head(folder: Path, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    log, summary = inside(folder, LOG), inside(folder, SUMMARY)
    written = log.stat().st_mtime if log is not None else None
    figures = {key: value for record in records for key, value in record.items() if key in SHOWN}
    return {
        "finished": summary is not None and summary.stat().st_mtime >= (written or 0) - 1,
        "age": None if written is None else round(max(0.0, time.time() - written)),
        "step": records[-1]["step"] if records else None,
        "figures": {key: figures[key] for key in SHOWN if _is_number(figures.get(key))},
    }


def _points(records: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    points = [(record["step"], record[key]) for record in records if _is_number(record.get(key))]
    every = -(-len(points) // POINTS)
    return points if every <= 1 else [*points[::every], points[-1]]


def _is_number(value: object) -> bool:
    """NaN and infinity have no place in JSON, nor on a curve."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _text(folder: Path, name: str) -> str:
    path = inside(folder, name)
    return "" if path is None else path.read_text(encoding="utf-8", errors="replace")[:LONGEST]
