"""Rows from files: jsonl, json, csv, tsv (each also .gz or .zst), parquet, arrow, a folder of them, or standard input.

In: a path, or `-`. Out: one `Row` for each record, with the address that every later error message starts with. The
whole file is read at once; a file is accepted entire or refused with the line that is wrong.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from preftune.data.tables import arrow_records, parquet_records, saved_splits
from preftune.errors import DataError, MissingExtraError
from preftune.types import Origin

BOM = b"\xef\xbb\xbf"
COMPRESSIONS = (".gz", ".zst")
KNOWN_SUFFIXES = ".jsonl, .json, .csv, .tsv (each also with .gz or .zst), .parquet, .arrow"
STDIN = "-"
VALIDATION_NAMES = frozenset({"validation", "valid", "val", "dev", "eval"})
SPLIT_NAMES = VALIDATION_NAMES | {"train", "test"}

PAIRS_REPORT = "pairs-report.json"  # beside the pairs that preftune makes
# what stands beside the data files of a set, from hubs and from us
NOT_ROWS = frozenset({"dataset_infos.json", "configuration.json", PAIRS_REPORT})

LONGEST_NAME = 80  # what an error message shows of a column's name

Record = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One record as the file has it: column name to value, and where it stands."""

    values: dict[str, Any]
    origin: Origin


def load_rows(path: str | Path, split: str = "train", subset: str | None = None) -> list[Row]:
    """Read a file, the files of a folder that belong to `split`, or standard input (`-`, JSON lines or a JSON list).

    `origin.row` is the line number in a jsonl file and the number of the record, from 1, in all others. A file that is
    named directly is read whatever its name says; in a folder, `train`, `test`, `eval`, ... in a file's name or in the
    name of its folder decide, and files without such a word are the train split. In a folder that `save_to_disk`
    wrote, the folders in it are the splits.

    Args:
        subset: of a folder, only the files that bear this name, or that lie in a folder of this name.

    Raises:
        DataError: nothing at `path`, no such split or subset, an unknown suffix, or a file that cannot be understood.
        MissingExtraError: a .zst file without the zstd extra.
    """
    if str(path) == STDIN:
        return _to_rows(_jsonl_records(_stdin_text(), "standard input"), "standard input", split)
    path = Path(path)
    if path.is_dir():
        return [row for file in split_files(path, split, subset) for row in _file_rows(file, split)]
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder. Check the path; {_neighbours(path)}.")
    return _file_rows(path, split)


def load_split_names(folder: Path, subset: str | None = None) -> list[str]:
    """The splits that the data files under `folder` give.

    Raises:
        DataError: no data files there, or none of the subset.
    """
    return sorted(_files_by_split(folder, subset))


def to_file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read (`.jsonl` of `x.jsonl.gz`), or None if it is none that is known."""
    return _suffixes(path)[0]


def to_compression(path: Path) -> str:
    """`.gz`, `.zst` or nothing."""
    return _suffixes(path)[1]


def to_stem(path: Path) -> str:
    """A data file's name without the suffixes that say how it is read."""
    kind, compression = _suffixes(path)
    return path.name[: len(path.name) - len(compression) - len(kind or "")]


def _file_rows(path: Path, split: str) -> list[Row]:
    kind = known_kind(path)
    records = TABLES[kind](path) if kind in TABLES else TEXTS[kind](_read_text(path), str(path))
    return _to_rows(records, str(path), split)


def _to_rows(records: Iterable[Record], dataset: str, split: str) -> list[Row]:
    rows = [Row(values, Origin(dataset, split, number)) for number, values in records]
    if not rows:
        raise no_rows(dataset)
    return rows


def no_rows(dataset: str) -> DataError:
    return DataError(f"{dataset}: it holds no rows; expected at least one. Check that it was written completely.")


def known_kind(path: Path) -> str:
    """As `to_file_kind`.

    Raises:
        DataError: it is none that is known.
    """
    kind = to_file_kind(path)
    if kind is None:
        raise DataError(f"{path}: files ending in '{path.suffix}' cannot be read. Use one of {KNOWN_SUFFIXES}.")
    return kind


def _suffixes(path: Path) -> tuple[str | None, str]:
    """The format and the compression: ('.jsonl', '.gz'), ('.parquet', ''), or (None, ...) when it is not known."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    name = name.removesuffix(compression)
    kind = next((suffix for suffix in (*TEXTS, *TABLES) if name.endswith(suffix)), None)
    return (None if kind in TABLES and compression else kind), compression


def _neighbours(path: Path) -> str:
    """What stands beside a path that does not exist."""
    if not path.parent.is_dir():
        return f"'{path.parent}' does not exist either"
    names = sorted(file.name for file in path.parent.iterdir() if _suffixes(file)[0])
    return f"beside it: {', '.join(names[:5])}" if names else "there are no data files beside it"


# --- folders


def split_files(folder: Path, split: str, subset: str | None) -> list[Path]:
    """The data files under `folder` that belong to `split`, in the order of their names."""
    by_split = _files_by_split(folder, subset)
    wanted = "validation" if split not in by_split and split in VALIDATION_NAMES else split
    if wanted not in by_split:
        raise DataError(f"{folder}: there is no split '{split}'. Its files give: {', '.join(sorted(by_split))}.")
    return by_split[wanted]


def _files_by_split(folder: Path, subset: str | None) -> dict[str, list[Path]]:
    files = [(split, file) for split, saved in saved_splits(folder).items() for file in saved]
    if not files:
        found = sorted(file for file in folder.rglob("*") if file.is_file() and to_file_kind(file))
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
        found = [file for file in found if file.name not in NOT_ROWS]
        files = [(_split_of(file.relative_to(folder)), file) for file in found]
    if not files:
        raise DataError(f"{folder}: the folder holds no data files. Expected files ending in {KNOWN_SUFFIXES}.")
    by_split: dict[str, list[Path]] = {}
    for split, file in files:
        if subset is None or _is_of_subset(file.relative_to(folder), subset):
            by_split.setdefault(split, []).append(file)
    if not by_split:
        names = name_list(dict.fromkeys(file.relative_to(folder).parts[0] for _, file in files))
        raise DataError(f"{folder}: nothing in it is called '{subset}' (found: {names}). Correct the subset's name.")
    return by_split


def _is_of_subset(file: Path, subset: str) -> bool:
    """Whether a folder of the path bears the subset's name, or the file does, but for a split and numbers."""
    wanted = _words(subset)
    if wanted in [_words(folder) for folder in file.parts[:-1]]:
        return True
    words = _words(to_stem(file))
    rest = {word for word in words[len(wanted) :] if not word.isdigit()}
    return words[: len(wanted)] == wanted and rest <= SPLIT_NAMES | {"of"}


def _words(text: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", text.lower())


def _split_of(file: Path) -> str:
    """The split that a file's name speaks of; the last such word counts, `train` when there is none.

    `train_prefs-00000-of-00004.parquet` is the split `train_prefs`, as the hub names it.
    """
    numbered = re.match(r"(.+)-\d{5}-of-\d{5}", file.name)
    if numbered:
        return numbered.group(1)
    words = [word for part in file.parts for word in _words(part)]
    found = [word for word in words if word in SPLIT_NAMES]
    last = found[-1] if found else "train"
    return "validation" if last in VALIDATION_NAMES else last


# --- bytes and text


def _read_text(path: Path) -> str:
    """The decompressed file as text, without a byte order mark."""
    _, compression = _suffixes(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if compression == ".gz":
        with gzip_errors(path):
            data = gzip.decompress(data)
    elif compression == ".zst":
        data = b"".join(zstd_pieces([data], path))
    return _decode(data, path)


@lru_cache(maxsize=1)  # it can be read once, and is asked for twice when a test split is held out
def _stdin_text() -> str:
    return _decode(sys.stdin.buffer.read(), "standard input")


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.")


@contextmanager
def gzip_errors(path: Path) -> Iterator[None]:
    """What is wrong with a gzip file, in one line."""
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path}: the gzip file is truncated: it ends early. Copy or download it again.") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}). Copy it again or rename it.") from error


def zstd_pieces(pieces: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file that comes in pieces; it may hold several frames one after the other."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(f"Reading {path}", "zstd") from error
    frame: Any = None
    try:
        for data in pieces:
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: not a sound zstd file ({error}). Copy it again or rename it.") from error
    if frame is not None:
        raise DataError(f"{path}: the zstd file is truncated: it ends early. Copy or download it again.")


def _decode(data: bytes, path: Path | str) -> str:
    try:
        return data.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + (len(BOM) if data.startswith(BOM) else 0)
        raise not_utf8(path, data.count(b"\n", 0, offset) + 1, data[offset], offset, data) from error


def not_utf8(path: Path | str, line: int, byte: int, offset: int, head: bytes) -> DataError:
    """`head` is how the file begins."""
    remedy = _encoding_remedy(head)
    return DataError(f"{path} line {line}: not UTF-8 (byte 0x{byte:02x} at offset {offset}). {remedy}")


def _encoding_remedy(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b"):
        return "It is a gzip file: give its name the ending .gz."
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "It looks like UTF-16: save it as UTF-8, for example with iconv -f utf-16 -t utf-8."
    return "Save it as UTF-8, for example with iconv -f latin1 -t utf-8."


# --- formats


def _jsonl_records(text: str, path: str) -> Iterator[Record]:
    if text.lstrip()[:1] == "[":  # a JSON list under the wrong name is understood all the same
        try:
            values = _parse_json(text)
        except (ValueError, RecursionError):
            return _lines_of(text, path)
        return _listed(values, path)
    return _lines_of(text, path)


def _lines_of(text: str, path: str) -> Iterator[Record]:
    return json_lines(enumerate(text.split("\n"), 1), path)  # not splitlines: U+2028 is allowed inside JSON text


def json_lines(lines: Iterable[tuple[int, str]], path: str) -> Iterator[Record]:
    """The objects of numbered lines; blank ones are passed over."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = _parse_json(line)
        except json.JSONDecodeError as error:
            raise _invalid_json(path, number, error.colno, error.msg, "Fix or delete this line") from error
        except (ValueError, RecursionError) as error:
            raise _invalid_json(path, number, 1, str(error), "Fix or delete this line") from error
        yield number, _object(value, f"{path} line {number}")


def _json_records(text: str, path: str) -> Iterator[Record]:
    if not text.strip():
        return iter(())
    try:
        values = _parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":  # JSON lines under the name .json
            return _lines_of(text, path)
        raise _invalid_json(path, error.lineno, error.colno, error.msg, "Fix the file there") from error
    except (ValueError, RecursionError) as error:
        raise _invalid_json(path, 1, 1, str(error), "Fix the file") from error
    return _listed(values, path)


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two values under one key would otherwise be read as the last of them."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {excerpt(twice)} twice")
    return values


def _listed(values: object, path: str) -> Iterator[Record]:
    if not isinstance(values, list):
        raise DataError(
            f"{path}: expected a list of objects, found {describe(values)}. "
            "Put the rows in [ ], or write one object a line and name the file .jsonl."
        )
    return ((number, _object(value, f"{path} row {number}")) for number, value in enumerate(values, 1))


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: expected an object such as {{"prompt": ..., "chosen": ..., "rejected": ...}}, '
            f"found {describe(value)}. Fix or delete it."
        )
    return value


def _invalid_json(path: str, line: int, column: int, problem: str, remedy: str) -> DataError:
    return DataError(f"{path} line {line}, column {column}: invalid JSON ({problem}). {remedy}.")


def _csv_records(text: str, path: str, delimiter: str = ",") -> Iterator[Record]:
    limit = csv.field_size_limit(len(text) + 1)  # Python's own limit of 131,072 characters is less than one long answer
    try:
        yield from csv_table(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def csv_table(reader: Any, path: str) -> Iterator[Record]:
    try:
        header: list[str] = next(reader, [])
        _check_header(header, path)
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            if len(cells) != len(header):
                raise DataError(
                    f"{path} row {number} (line {reader.line_num}): expected {len(header)} cells as in the header, "
                    f"found {len(cells)}. Put text that holds commas or line breaks in double quotes."
                )
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: invalid CSV ({error}). Check the quotes there.") from error


def _check_header(header: list[str], path: str) -> None:
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        names = name_list(sorted(twice))
        raise DataError(f"{path} line 1: the header names a column twice ({names}). Rename one of them.")


TEXTS: dict[str, Callable[[str, str], Iterable[Record]]] = {
    ".jsonl": _jsonl_records,
    ".json": _json_records,
    ".csv": _csv_records,
    ".tsv": partial(_csv_records, delimiter="\t"),
}
TABLES: dict[str, Callable[[Path], Iterable[Record]]] = {".parquet": parquet_records, ".arrow": arrow_records}


def describe(value: object) -> str:
    """A value in the words of a JSON file, short enough for an error message: `a number (5)`, `an empty list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"a number ({value})" if abs(value) < 1e15 else "a large number"
    if isinstance(value, str):
        return f"text ({excerpt(value)})"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def name_list(names: Iterable[object]) -> str:
    """Names of columns or keys for an error message: on one line, the first 20, none at any length."""
    shown = [one_line(str(name)[:LONGEST_NAME]) for name in names]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") or "none"


def one_line(text: str) -> str:
    """Text that can be printed within a line, whatever it holds."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def excerpt(text: str, limit: int = 40) -> str:
    """The start of a text in quotes, on one line."""
    flat = one_line(text[: 4 * limit])
    return f'"{flat[:limit]}…"' if len(flat) > limit else f'"{flat}"'
