"""Records from Arrow tables: parquet files, Arrow files, and the folders that `datasets` writes with `save_to_disk`.

In: a path. Out: (number from 1, column name to value) of every record, in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from preftune.errors import DataError

ARROW_FILE_MAGIC = b"ARROW1"  # the file form (Feather); without it the stream form, which `datasets` writes
SLICE = 1024  # records that are Python objects at one time


def parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    return _records(path, "parquet", lambda: pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=SLICE))


def arrow_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _records(path, "Arrow", lambda: _arrow_batches(path))


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with path.open("rb") as file:
        is_file = file.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
    with pyarrow.memory_map(str(path)) as source:
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(source)


def _records(path: Path, kind: str, batches: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for start in range(0, batch.num_rows, SLICE):  # one batch may be the whole file
                for record in batch.slice(start, SLICE).to_pylist():
                    number += 1
                    yield number, record
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text after row {number} is not UTF-8. Write the file anew as UTF-8.") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problem = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"{path}: not a sound {kind} file ({problem}). Copy it again, or write it anew.") from error


def saved_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of what `save_to_disk` wrote under `folder`, by split; empty if it wrote nothing there.

    The name of a folder inside is the name of its split; a set saved by itself is of the split it was, or train.

    Raises:
        DataError: a state.json that cannot be read.
    """
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("state.json")):
        state = _read_state(file)
        if state is None:
            continue
        split = file.parent.name if file.parent != folder else state.get("_split") or "train"
        splits.setdefault(split, []).extend(file.parent / name for name in _file_names(state["_data_files"], file))
    return splits


def _read_state(file: Path) -> dict[str, Any] | None:
    """What `save_to_disk` noted, or None for a state.json of another hand."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save the data set again with save_to_disk.") from error
    return state if isinstance(state, dict) and "_data_files" in state else None


def _file_names(listed: object, file: Path) -> Iterable[str]:
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "filename" in item for item in listed):
        raise DataError(f"{file}: '_data_files' lists no file names. Save the data set again with save_to_disk.")
    return [item["filename"] for item in listed]
