"""`preftune annotate`: rows with answers in, the same rows with `scores` out, in chunks that a kill does not lose.

    {...the row..., "scores": [3.5, null], "score_failures": [null, "the request failed: ..."]}

`scores` are in the order of the row's answers (chosen first), more being better; `score_failures` is there only where
something failed. While the job runs its rows are in OUTPUT.job/ (`preftune.onpolicy.journal`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.data import Row, load_rows
from preftune.data.bad_rows import BadRowError
from preftune.data.reader import RowReader
from preftune.errors import DataError
from preftune.onpolicy.journal import Journal, Share, check_output, journal_folder, read_items, write_rows
from preftune.onpolicy.pairs import read_scores
from preftune.onpolicy.scorers.base import Score, Scorer
from preftune.onpolicy.scorers.judge import JudgeScorer, Prices
from preftune.serve.score import read_responses, recognise_responses
from preftune.types import Example

log = logging.getLogger(__name__)
CHUNK = 64  # rows
SPOKEN_SECONDS = 10.0  # between lines of progress


def annotate_file(
    file: str | Path,
    scorer: Scorer | None,
    output: str | Path,
    *,
    keep_scores: bool = False,
    columns: Mapping[str, str | None] | None = None,
    split: str = "train",
    chunk: int = CHUNK,
    prices: Prices | None = None,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Score the answers of every row of `file`, or of the rows that are left of a job that was killed.

    A chunk is scored by itself, so the output is the same with and without the kill.

    Args:
        file: rows with a list of responses, with chosen and rejected, or with one response.
        scorer: None only with `keep_scores`: the file has all scores already.
        keep_scores: rows that have all their scores keep them.
        prices: of a judge, for the estimate in the log.
        rank, world: this process does every `world`-th chunk; the one that finishes last writes the output.

    Returns:
        rows, answers, kept (rows), failed (answers without a score), mean, seconds, output. While other processes work,
        output is None and there are no counts.

    Raises:
        DataError: the file or a row is wrong, or `output` cannot be written.
        CheckpointError: a job for `output` was begun with other settings, another process is at it, or its journal is
            damaged.
    """
    output = Path(output)
    if output.exists() and output.resolve() == Path(file).resolve():
        raise DataError(f"{output}: is the file that is read. Give another --output.")
    check_output(output)
    rows = load_rows(file, split)
    examples, kept = _read(rows, columns, keep_scores)
    missing = next((example for example, own in zip(examples, kept, strict=True) if own is None), None)
    if scorer is None and missing is not None:
        raise DataError(f"{missing.origin}: has no scores to keep, or null among them. Name a scorer for such rows.")
    settings = {**(scorer.settings() if scorer else {}), "keep_scores": keep_scores, "chunk": chunk}
    share = Share(len(rows), chunk, rank, world)
    journal = Journal(journal_folder(output), {**settings, "rows": len(rows), "rows_hash": _hash(rows)}, share)
    with closing(journal):
        progress = _Progress(sum(map(len, share.chunks())), journal.left())
        left = [number for numbers in journal.left() for number in numbers if kept[number] is None]
        judge = getattr(scorer, "scorer", scorer)  # a cache stands around it
        if isinstance(judge, JudgeScorer) and left:
            judge.say_cost([examples[number] for number in left], prices)
        for numbers in journal.left():
            asked = [number for number in numbers if kept[number] is None]
            found = scorer.score([examples[number] for number in asked]) if scorer and asked else []
            scores = dict(zip(asked, found, strict=True))
            journal.append([_to_item(rows[n], scores[n] if n in scores else kept[n] or []) for n in numbers])
            progress.told(len(numbers))
    items = read_items(journal_folder(output), len(rows), chunk, world)
    if items is None:
        log.info("This share is done; the process that finishes last writes %s.", output)
        return {"rows": len(rows), "seconds": progress.seconds, "output": None}
    write_rows(output, items)
    return _summary(items, sum(own is not None for own in kept)) | {"seconds": progress.seconds, "output": str(output)}


def _read(
    rows: Sequence[Row], columns: Mapping[str, str | None] | None, keep_scores: bool
) -> tuple[list[Example], list[list[Score] | None]]:
    """The examples, and the scores that a row keeps; None where it is scored."""
    mapping = recognise_responses(rows, columns)
    log.info("%s: %s", rows[0].origin.dataset, mapping)
    examples: list[Example] = []
    kept: list[list[Score] | None] = []
    try:
        for row in rows:
            reader = RowReader(row, mapping)
            examples.append(read_responses(reader))
            values = None
            if keep_scores and row.values.get(mapping.roles.get("scores", "scores")) is not None:
                values = read_scores(reader, len(examples[-1].responses))
            kept.append(None if values is None or None in values else [Score(value) for value in values])
    except BadRowError as bad:
        raise DataError(str(bad)) from None
    return examples, kept


def _to_item(row: Row, scores: Sequence[Score]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(row.values, default=str))
    values.pop("score_failures", None)  # of an earlier scorer
    item = values | {"scores": [score.value for score in scores]}
    if any(score.failure for score in scores):
        item["score_failures"] = [score.failure for score in scores]
    return item


def _hash(rows: Sequence[Row]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(json.dumps(row.values, default=str).encode())
    return digest.hexdigest()


def _summary(items: Sequence[Mapping[str, Any]], kept: int) -> dict[str, Any]:
    values = [value for item in items for value in item["scores"]]
    given = [value for value in values if value is not None]
    failed = len(values) - len(given)
    if failed:
        log.warning("%d of %d answers have no score; 'score_failures' says why.", failed, len(values))
    mean = sum(given) / len(given) if given else None
    return {"rows": len(items), "answers": len(values), "kept": kept, "failed": failed, "mean": mean}


class _Progress:
    """Says now and then how far the job is."""

    def __init__(self, rows: int, left: Sequence[range]) -> None:
        self.rows, self.done = rows, rows - sum(map(len, left))
        self.before = self.done
        self.started = self.spoken = time.monotonic()
        if self.before and left:
            log.info("%d of %d rows are scored already; going on.", self.before, rows)

    def told(self, rows: int) -> None:
        self.done, now = self.done + rows, time.monotonic()
        if now - self.spoken >= SPOKEN_SECONDS:
            self.spoken = now
            left = (self.rows - self.done) * (now - self.started) / (self.done - self.before)
            log.info("%d of %d rows, about %.0f s left", self.done, self.rows, left)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
