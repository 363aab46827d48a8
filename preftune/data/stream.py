"""Rows from files one after the other, for data that is larger than memory.

In: what a recipe names as its dataset. Out: the files of each source (`find_parts`), and the records of a file
(`read_records`), of which no more than a piece and a row are in memory. Parsers and error lines are those of `sources`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from preftune.data.catalog import CatalogEntry, load_catalog
from preftune.data.locate import Place, locate
from preftune.data.mixture import Source, parse_sources
from preftune.data.preferences import wanted_splits
from preftune.data.sources import (
    BOM,
    STDIN,
    TABLES,
    Record,
    csv_table,
    gzip_errors,
    json_lines,
    known_kind,
    not_utf8,
    split_files,
    to_compression,
    unreadable,
    zstd_pieces,
)
from preftune.errors import DataError, RecipeError

PIECE = 1 << 16  # bytes read at a time
HEAD = 1 << 20  # bytes of a file that tell it from others
LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class StreamPart:
    """The files of one source, each with its split."""

    source: Source
    entry: CatalogEntry | None
    files: tuple[tuple[Path, str], ...]


def find_parts(
    dataset: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    splits: Sequence[str] | Mapping[str, Any] | None = None,
    configs: Sequence[str | None] | Mapping[str, str] | None = None,
    catalog: str | Path | None = None,
) -> list[StreamPart]:
    """The training files that `dataset` names, as `preftune.data.preferences.load_preferences` understands it.

    Raises:
        DataError: there is no such file, or it is not one that can be read row by row.
        RecipeError: what a stream has not: a part of the rows, weights, standard input, sets on the hub.
    """
    named = load_catalog(catalog)
    parts = []
    for source in parse_sources(dataset, configs, splits):
        _refuse_amounts(source)
        places = locate(source, named)
        files = tuple(file for place in places for file in _files_of(source, place))
        parts.append(StreamPart(source, places[0].entry, files))
    return parts


def _refuse_amounts(source: Source) -> None:
    if source.path is not None and str(source.path) == STDIN:
        raise RecipeError("'streaming' true cannot read standard input, which passes once. Write it to a file.")
    if source.count is not None or source.weight != 1:
        amount = f"#{source.count}" if source.count is not None else f"weight {source.weight:g}"
        raise RecipeError(
            f"'streaming' true reads '{source.name}' whole, and '{amount}' asks for a part. Leave one of them out."
        )


def _files_of(source: Source, place: Place) -> Iterator[tuple[Path, str]]:
    if place.path is None:
        raise RecipeError(
            f"'streaming' true reads files, and '{place.name}' is on the hub. Download it and name the file or folder."
        )
    for split in wanted_splits(source, place, "train"):
        files = split_files(place.path, split, place.subset) if place.path.is_dir() else [place.path]
        for file in files:
            if known_kind(file) == ".json":
                raise DataError(
                    f"{file}: a .json file is one value and cannot be read row by row. Write one object a line and "
                    "name it .jsonl, or leave streaming out."
                )
            yield file, split


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the files' names, sizes and beginnings."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size} ".encode())
                digest.update(file.read(HEAD))
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()


def read_records(path: Path, skip: int = 0) -> Iterator[Record]:
    """The records of a file after the first `skip`, numbered as `preftune.data.sources.load_rows` numbers them.

    Lines of JSON that are skipped are not parsed.

    Raises:
        DataError: the file cannot be understood; what comes before the place has been handed out.
    """
    kind = known_kind(path)
    if kind in TABLES:
        return islice(iter(TABLES[kind](path)), skip, None)
    if kind == ".jsonl":
        return json_lines(_json_texts(path, skip), str(path))
    return islice(_csv_records(path, "\t" if kind == ".tsv" else ","), skip, None)


def _json_texts(path: Path, skip: int) -> Iterator[tuple[int, str]]:
    filled = ((number, line.removesuffix("\n")) for number, line in text_lines(path) if line.strip())
    first = next(filled, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        raise DataError(
            f"{path} line {first[0]}: the file is a list, which cannot be read row by row. Write one object a line, or "
            "leave streaming out."
        )
    yield from islice(chain([first], filled), skip, None)


def _csv_records(path: Path, delimiter: str) -> Iterator[Record]:
    lines = chain.from_iterable(io.StringIO(line, newline="") for _, line in text_lines(path))  # "\r" ends a line too
    csv.field_size_limit(LONGEST_CELL)  # of the process; not put back, for another file may be half read
    return csv_table(csv.reader(lines, delimiter=delimiter, strict=True), str(path))


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers and line ends, decompressed, without a byte order mark."""
    offset, head = 0, b""
    for number, line in enumerate(_byte_lines(_pieces(path)), 1):
        head = head or line
        mark = len(BOM) if number == 1 and line.startswith(BOM) else 0
        try:
            text = line[mark:].decode("utf-8")
        except UnicodeDecodeError as error:
            place = mark + error.start
            raise not_utf8(path, number, line[place], offset + place, head) from error
        yield number, text
        offset += len(line)


def _byte_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []  # of a line that goes on
    for piece in pieces:
        *ended, last = piece.split(b"\n")
        for line in ended:
            yield b"".join([*rest, line, b"\n"])
            rest = []
        if last:
            rest.append(last)
    if rest:
        yield b"".join(rest)


def _pieces(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file."""
    compression = to_compression(path)
    if compression == ".gz":
        with gzip_errors(path), gzip.open(path) as file:
            while piece := file.read(PIECE):
                yield piece
        return
    raw = _raw_pieces(path)
    yield from zstd_pieces(raw, path) if compression == ".zst" else raw


def _raw_pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise unreadable(path, error) from error
