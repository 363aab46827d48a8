"""Rows from the hub: a data set's splits through `datasets`, or files of its repository, read by our own readers.

In: `owner/name`, perhaps a subset, and a split. Out: `Row`s, addressed by their number from 1. What was fetched lies in
the cache of Hugging Face's libraries; with HF_HUB_OFFLINE=1 they look there alone, with HF_ENDPOINT elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.data.sources import Row, load_rows, one_line
from preftune.errors import DataError
from preftune.types import Origin


def load_hub_rows(name: str, subset: str | None, split: str, *, catalogued: bool = False) -> list[Row]:
    """One split of a data set, whole.

    Args:
        subset: the configuration, as the hub calls it; None for a data set with one.
        catalogued: whether the catalogue knows it, so that a local copy may be named for it.

    Raises:
        DataError: no such data set, subset or split, or the hub cannot be reached and nothing is cached.
    """
    from datasets import load_dataset

    shown = f"{name}:{subset}" if subset else name
    with _told(shown, catalogued):
        table = load_dataset(name, subset, split=split).with_format("arrow")
        records = [record for batch in table.iter(batch_size=1024) for record in batch.to_pylist()]
    if not records:
        raise DataError(f"{shown}[{split}]: the split holds no rows; expected at least one. Name another split.")
    return [Row(record, Origin(shown, split, number)) for number, record in enumerate(records, 1)]


def load_hub_split_names(name: str, subset: str | None) -> list[str]:
    """The names of the splits of a data set that the catalogue does not know.

    Raises:
        DataError: as `load_hub_rows`.
    """
    from datasets import get_dataset_split_names

    with _told(f"{name}:{subset}" if subset else name, False):
        return list(get_dataset_split_names(name, subset))


def load_hub_files(name: str, pattern: str, split: str) -> list[Row]:
    """The files that match `pattern` in the repository of a data set of the catalogue, one after the other.

    Raises:
        DataError: no such data set or file, or the hub cannot be reached and nothing is cached.
    """
    from huggingface_hub import snapshot_download

    with _told(name, True):
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=pattern))
    files = sorted(folder.glob(pattern))
    if not files:
        raise DataError(
            f"{name}: no file there, or in the cache if offline, is '{pattern}'. {_local_copy(name, True)}."
        )
    return [
        Row(row.values, Origin(f"{name}/{file.relative_to(folder)}", split, row.origin.row))
        for file in files
        for row in load_rows(file, split)
    ]


@contextmanager
def _told(name: str, catalogued: bool) -> Iterator[None]:
    """What the libraries raise, as an error of ours in one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError) as error:  # the hub's own errors and those of the network are OSErrors
        problem = one_line(str(error).split("Example of usage")[0]).rstrip(".")
        raise DataError(
            f"{name}: cannot be had from the hub ({problem[:300]}). {_remedy(name, problem, catalogued)}."
        ) from error


def _remedy(name: str, problem: str, catalogued: bool) -> str:
    if problem.startswith("Unknown split"):
        return "Name one of these in 'dataset_splits'"
    if re.match("Config name is missing|BuilderConfig", problem):
        return f"Name the subset: {name.split(':')[0]}:SUBSET"
    return _local_copy(name, catalogued)


def _local_copy(name: str, catalogued: bool) -> str:
    copy = f"name a local copy: {name}=PATH" if catalogued else "download it and name the file or folder instead"
    return f"Check the name and the network, or {copy}"
