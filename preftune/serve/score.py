"""A file of rows in, the same rows with the scores of their responses out, under a reward model."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.data import Row, load_rows, recognise
from preftune.data.bad_rows import BadRowError
from preftune.data.columns import ColumnMapping
from preftune.data.ranked import RESPONSE_KEYS
from preftune.data.reader import RowReader, build_example, read_answer, read_prompt, shared_history, to_answer
from preftune.errors import DataError
from preftune.serve.reward import BATCH_TOKENS, Scores, open_reward_model, score_examples
from preftune.types import Example, Layout

log = logging.getLogger(__name__)


def score_file(
    model: str,
    file: str | Path,
    *,
    output: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    split: str = "train",
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Score every response of every row of `file`, and return a summary.

    Args:
        model: a folder (also a run that has only checkpoints) or a hub name.
        file: rows with one response, with chosen and rejected, or with a list of responses.
        output: JSON lines, each row with all its columns and with `scores`, in the order of its responses (chosen
            first); None writes nothing.
        columns: the file's name to a known one, see `preftune.data.formats`; None = ignore the column.
        split: which files of a folder.
        batch_tokens: of one forward pass; a longer row gets one of its own.
        max_length: cut prompt and response together to so many tokens; None = what the model reads.

    Returns:
        rows, responses, mean, for pairs accuracy (strictly higher score of the chosen one) and margin (mean
        difference), responses_cut, seconds, output.

    Raises:
        DataError: the file or a row is wrong, or `output` cannot be written.
        ModelError: no reward model can be loaded from there, or a score is not a finite number.
    """
    rows = load_rows(file, split)
    mapping = recognise_responses(rows, columns)
    try:
        examples = [read_responses(RowReader(row, mapping)) for row in rows]
    except BadRowError as bad:
        raise DataError(str(bad)) from None
    log.info("%s: %s", file, mapping)
    target = _checked_output(output, file, rows)
    reward = open_reward_model(model)
    started = time.perf_counter()
    scores = score_examples(reward, examples, batch_tokens=batch_tokens, max_length=max_length)
    seconds = time.perf_counter() - started
    if target is not None:
        _write(target, rows, scores.values)
    ordered = mapping.form is Layout.PAIRED and not mapping.winners  # a winner column may prefer either answer
    return _summary(scores, ordered) | {"seconds": seconds, "output": target and str(target)}


# --- the file


def recognise_responses(rows: Sequence[Row], columns: Mapping[str, str | None] | None) -> ColumnMapping:
    """The form with the most responses a row."""
    try:
        mapping = recognise(rows, Layout.RANKED, columns)
    except DataError:
        mapping = recognise(rows, Layout.SINGLE, columns)
    return replace(mapping, layout=mapping.form)


def read_responses(reader: RowReader) -> Example:
    """The row's responses as they stand: not sorted, equal ones kept, one is enough.

    Raises:
        DataError: the row is wrong.
    """
    if "responses" in reader.mapping.roles:
        answer_role, name = "responses", reader.name("responses")
        items = reader.value(answer_role, "a list of responses")
        if not isinstance(items, list) or not items:
            remedy = 'Write it as ["an answer", "another answer"], or delete the row'
            raise reader.unlike(items, f"'{name}'", "a list of responses", remedy)
        answers = [to_answer(reader, _response(item), f"'{name}' item {place}") for place, item in enumerate(items, 1)]
    else:
        roles = [
            role for role in ("chosen", "rejected", "answer_1", "answer_2", "response") if role in reader.mapping.roles
        ]
        answer_role, answers = roles[0], [read_answer(reader, role) for role in roles]
    history = shared_history(reader, [history for history, _ in answers])
    prompt = read_prompt(reader, history, answer_role)
    return build_example(reader, prompt, [answer for _, answer in answers])


def _response(item: object) -> object:
    """What an object such as {response, overall_score} holds; else the item itself."""
    keys = [key for key in RESPONSE_KEYS if isinstance(item, dict) and key in item]
    return item[keys[0]] if keys else item  # type: ignore[index]


def _checked_output(output: str | Path | None, file: str | Path, rows: Sequence[Row]) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if path.exists() and path.resolve() == Path(file).resolve():
        raise DataError(f"{path}: is the file that is read. Give another --output.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: cannot be written there. Give a file in a folder that exists and can be written to.")
    if any("scores" in row.values for row in rows):
        log.info("%s: the column 'scores' is replaced in %s", file, path)
    return path


def _write(path: Path, rows: Sequence[Row], scores: Sequence[list[float]]) -> None:
    part = path.with_name(path.name + ".part")
    # backslashreplace: half a surrogate pair, which UTF-8 has no bytes for, becomes its JSON escape
    with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row, values in zip(rows, scores, strict=True):
            line = row.values | {"scores": [float(f"{value:.9g}") for value in values]}  # 9 digits hold a float32
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    part.replace(path)


def _summary(scores: Scores, pairs: bool) -> dict[str, Any]:
    flat = [value for values in scores.values for value in values]
    summary: dict[str, Any] = {"rows": len(scores.values), "responses": len(flat), "mean": sum(flat) / len(flat)}
    if pairs:
        margins = [chosen - rejected for chosen, rejected in scores.values]
        summary["accuracy"] = sum(margin > 0 for margin in margins) / len(margins)
        summary["margin"] = sum(margins) / len(margins)
    return summary | {"responses_cut": scores.cut}
