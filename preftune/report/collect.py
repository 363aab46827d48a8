"""What a report is made of: run folders, and what `preftune eval` printed as JSON or left in a folder.

run folder        summary.json, log.jsonl, watch.jsonl (whose first and last look are before and after)
FILE.json         what `preftune eval ... --json` printed
FILE.jsonl        prompt, before, after of each row: `preftune eval regress --answers`
folder            of `preftune eval ... run`: scores.json, annotations.json, and in *.replies.jsonl what
                      the judge read and wrote
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.evaluation.files import read_rows, read_text
from preftune.train.checkpoint import ANSWERS, LOG, SUMMARY
from preftune.train.record import read_log

SCORES, ANNOTATIONS, REPLIES = "scores.json", "annotations.json", "*.replies.jsonl"
KINDS = {  # what only the JSON of one kind has
    "harness": {"tasks", "model", "prompt_form"},
    "regress": {"prompts", "figures"},
    "preferences": {"overall", "by_length", "reward"},
    "alpaca-eval": {"annotator", "win_rate", "standard_error"},
    "arena-hard": {"version", "score", "lower", "upper"},
    "mt-bench": {"by_turn", "score", "rated"},
    "mt-bench-pairs": {"wins", "losses", "win_rate_adjusted"},
}


@dataclass(frozen=True)
class Samples:
    """Answers side by side. headings: of the columns; rows: prompt, then the answers."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Run:
    """One training run. summary is empty where it has not ended; metrics: the last value of each."""

    name: str
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    samples: Samples | None

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.summary.get("metrics") or {key: v for one in self.records for key, v in one.items()})


@dataclass(frozen=True)
class Judging:
    """Tokens of the replies that a judge gave; None where its server did not count them."""

    name: str
    requests: int
    read: int | None
    written: int | None


@dataclass(frozen=True)
class Evaluations:
    """kind -> (name of the file, its row) of all scores, with samples and what the judges took."""

    scores: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    samples: list[Samples] = field(default_factory=list)
    judgings: list[Judging] = field(default_factory=list)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs, by names that differ.

    Raises:
        DataError: a folder is no run.
    """
    places = [Path(folder).expanduser().resolve() for folder in folders]
    return [_run(place, name) for place, name in zip(places, _names(places), strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """Folder names, with so many parents as it takes to tell them apart."""
    if len(set(places)) < len(places):
        raise DataError("A run is named twice. Name each once.")
    parts = 1
    while True:
        names = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(names)) == len(names):
            return names
        parts += 1


def _run(folder: Path, name: str) -> Run:
    records = read_log(folder / LOG)
    if not records and not (folder / SUMMARY).is_file():
        raise DataError(f"{folder}: expected a run folder with {SUMMARY} or {LOG}, found neither. Give the output_dir.")
    summary = _object(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    looks = [look for look in read_log(folder / ANSWERS) if look.get("answers")]
    return Run(name, summary, records, _watched(name, looks))


def _watched(name: str, looks: Sequence[Mapping[str, Any]]) -> Samples | None:
    """The answers to the watched prompts at the start and at the end."""
    if len(looks) < 2:
        return None
    first, last = looks[0], looks[-1]
    rows: list[tuple[str, ...]] = [
        (before["prompt"], before["answer"], after["answer"])
        for before, after in zip(first["answers"], last["answers"], strict=False)
    ]
    return Samples(name, ("prompt", f"after step {first['step']}", f"after step {last['step']}"), rows)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Write it anew, or leave the run out.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, found {type(found).__name__}.")
    return found


# --- evaluations


def read_evaluations(paths: Sequence[str | Path]) -> Evaluations:
    """Everything of the files and folders.

    Raises:
        DataError: one is not such.
    """
    found = Evaluations()
    for path in map(Path, paths):
        if path.is_dir():
            _add_folder(found, path)
        elif str(path).removesuffix(".gz").endswith(".jsonl"):
            _add_answers(found, path)
        else:
            _add_scores(found, path, path.name)
    return found


def _add_folder(found: Evaluations, folder: Path) -> None:
    if not (folder / SCORES).is_file():
        raise DataError(f"{folder}: expected {SCORES} of `preftune eval ... run`, which is not there. Give such a "
                        "folder, or the file that --json printed.")  # fmt: skip
    _add_scores(found, folder / SCORES, f"{folder.name}/{SCORES}")
    if (folder / ANNOTATIONS).is_file():
        rows = read_rows(folder / ANNOTATIONS, ("instruction", "output_1", "output_2", "preference"))
        one = rows[0]
        heads = ("prompt", str(one.get("generator_1", "baseline")), str(one.get("generator_2", "model")))
        shown: list[tuple[str, ...]] = [(str(r["instruction"]), str(r["output_1"]), str(r["output_2"])) for r in rows]
        found.samples.append(Samples(f"{folder.name}: baseline and model", heads, shown))
    for path in sorted(folder.glob(REPLIES)):
        found.judgings.append(_judging(f"{folder.name}/{path.name}", read_rows(path, ("reply",))))


def _judging(name: str, rows: Sequence[Mapping[str, Any]]) -> Judging:
    def total(key: str) -> int | None:
        counts = [row["reply"].get(key) for row in rows]
        return None if None in counts else sum(counts)

    return Judging(name, len(rows), total("prompt_tokens"), total("completion_tokens"))


def _add_answers(found: Evaluations, path: Path) -> None:
    rows = read_rows(path, ("prompt", "before", "after"))
    shown: list[tuple[str, ...]] = [(str(row["prompt"]), str(row["before"]), str(row["after"])) for row in rows]
    found.samples.append(Samples(path.name, ("prompt", "before", "after"), shown))


def _add_scores(found: Evaluations, path: Path, name: str) -> None:
    try:
        rows = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Give what `preftune eval ... --json` printed.") from None
    for row in rows if isinstance(rows, list) else [rows]:
        kind = next((kind for kind, keys in KINDS.items() if isinstance(row, dict) and keys <= row.keys()), None)
        if kind is None:
            raise DataError(f"{path}: expected the figures that `preftune eval ... --json` prints; found something "
                            "else. Give such a file.")  # fmt: skip
        found.scores.setdefault(kind, []).append((name, row))
