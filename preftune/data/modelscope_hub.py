"""Data sets of ModelScope, as folders: `owner/name` is fetched whole into the cache of the package `modelscope`.

In: a name. Out: the folder its files lie in, which `preftune.data.sources` reads like any other. The package's own
variables hold: MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN. This module alone imports the package, so
it is imported only for a name that is written MS::owner/name.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from modelscope.hub.snapshot_download import snapshot_download

from preftune.data.sources import one_line
from preftune.errors import DataError

log = logging.getLogger(__name__)


@cache  # the training and the test split are asked for one after the other
def fetch_modelscope_folder(name: str, remedy: str) -> Path:
    """The folder with the files of a data set, fetched where they are not in the cache yet.

    If ModelScope cannot be reached, what the cache holds of the set is read, with a warning: the package does not
    know whether that is all of it.

    Args:
        remedy: what to do when it cannot be had, as the end of a message.

    Raises:
        DataError: no such data set, a file that did not arrive, or no network and nothing in the cache.
    """
    try:
        return _snapshot(name)
    except Exception as error:  # the errors of the package's releases have no base in common
        folder = _cached(name) if isinstance(error, ConnectionError | TimeoutError) else None
        if folder is None:
            raise DataError(f"{name}: cannot be had from ModelScope ({_problem(error)}). {remedy}.") from error
        count = sum(file.is_file() for file in folder.rglob("*"))
        log.warning(
            "%s: ModelScope cannot be reached; the %d files fetched before are read, from %s", name, count, folder
        )
        return folder


def _snapshot(name: str, local_files_only: bool = False) -> Path:
    return Path(snapshot_download(repo_id=name, repo_type="dataset", local_files_only=local_files_only))


def _cached(name: str) -> Path | None:
    try:
        folder = _snapshot(name, local_files_only=True)
    except Exception:  # it is not in the cache; what is told is why it could not be fetched
        return None
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def _problem(error: Exception) -> str:
    if getattr(getattr(error, "response", None), "status_code", None) == 404:
        return "it has no data set of that name"
    failed = getattr(error, "failed_files", None)
    files = f": {', '.join(sorted(failed)[:3])}" if failed else ""
    return (one_line(str(error)).rstrip(".") + files)[:300]
