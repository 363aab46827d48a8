"""The files of the benchmarks: JSON lists, JSON lines and CSV tables, plain or gzipped.

A file that is written is whole or not there; one error names the file, the row and what was expected.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import DataError

Rows = list[dict[str, Any]]
NAMES = frozenset({"question_id", "uid", "model", "model_id", "model_1", "model_2", "category", "name"})
TEXTS = frozenset({"instruction", "output", "system_prompt", "prompt_template"})


def read_text(path: str | Path) -> str:
    """The text of a file, unpacked where its name ends in .gz.

    Raises:
        DataError: it is not there, or is not UTF-8 text.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read ({reason}). Give a file that is there, UTF-8 text or .gz.") from None


def read_rows(path: str | Path, needs: Sequence[str] = ()) -> Rows:
    """The objects of a JSON list or of JSON lines, each with the fields that are needed.

    Raises:
        DataError: the file or a row is not such.
    """
    text = read_text(path)
    name = str(path).removesuffix(".gz")
    rows = _json_lines(path, text) if name.endswith(".jsonl") else _json(path, text, "the file")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of at least one object. Check that it is the file that is meant.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number}: expected an object, found {type(row).__name__}.")
        if missing := [field for field in needs if field not in row]:
            found = ", ".join(list(row)[:8])
            raise DataError(f"{path} row {number}: expected the fields {', '.join(needs)}; {missing[0]!r} is missing"
                            f" (found {found}).")  # fmt: skip
        for field in needs:
            _check_kind(f"{path} row {number}", field, row[field])
    return rows


def _check_kind(where: str, field: str, value: Any) -> None:
    """Fields that rows are joined and named by."""
    if field in NAMES and (value == "" or isinstance(value, bool) or not isinstance(value, str | int)):
        raise DataError(f"{where}: expected {field!r} to be a name or a whole number, found {value!r}.")
    if field in TEXTS and not isinstance(value, str):
        raise DataError(f"{where}: expected {field!r} to be a text, found {value!r}.")


def _json_lines(path: str | Path, text: str) -> list[Any]:
    lines = enumerate(text.split("\n"), 1)  # splitlines would also cut at separators inside a string
    return [_json(path, line, f"line {number}") for number, line in lines if line.strip()]


def _json(path: str | Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {where} is not JSON ({error}). Write it anew.") from None


def read_table(path: str | Path, needs: Sequence[str]) -> list[dict[str, str]]:
    """The records of a CSV file that has these columns.

    Raises:
        DataError: the file is not such.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV ({error}). Check that it is the file that is meant."
                        ) from None  # fmt: skip
    missing = [name for name in needs if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: expected a CSV file with the columns {', '.join(map(repr, needs))}; "
                        f"{missing[0]!r} is missing.")  # fmt: skip
    return rows


def to_number(text: str, where: str) -> float:
    """Raises DataError: the text is no finite number."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: expected a number, found {text!r}.")
    return number


def write_text(path: str | Path, text: str) -> None:
    """Write under another name, then rename; packed where the name ends in .gz.

    backslashreplace: half a surrogate pair becomes its JSON escape.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        raw = text.encode("utf-8", "backslashreplace")
        part.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)  # 0: equal texts, equal bytes
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Give a folder that can be.") from None


def check_output(path: str | Path, reads: Sequence[str | Path]) -> None:
    """Refuse to write over a file that is read.

    Raises:
        DataError: it is one of them, or a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder. Give --output a file.")
    if path.exists() and any(Path(other).exists() and path.samefile(other) for other in reads):
        raise DataError(f"{path}: is a file that is read. Give another --output.")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON list, or JSON lines where the name ends in .jsonl or .jsonl.gz."""
    if str(path).removesuffix(".gz").endswith(".jsonl"):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_text(path, json.dumps(list(rows), ensure_ascii=False, indent=4) + "\n")
