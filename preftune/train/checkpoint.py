"""A checkpoint is complete or it does not exist.

It is written to `.incomplete/checkpoint-N`, listed with sizes and hashes in `manifest.json`, synced and renamed.
Resuming takes the newest folder whose manifest verifies, and names those it passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from preftune.errors import CheckpointError

logger = logging.getLogger(__name__)
STAGING = ".incomplete"
MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a finished folder and make everything in it durable."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        _sync(path)


def publish(staged: Path, final: Path) -> None:
    """Give a sealed folder its name; what stood there before is replaced."""
    replaced = staged.with_name(staged.name + ".old")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    if not any(staged.parent.iterdir()):
        staged.parent.rmdir()


def problem(folder: Path) -> str | None:
    """None for a complete checkpoint, else what is wrong with it."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}, so it was never finished"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if _sha256(path) != facts["sha256"]:
            return f"{name} has changed since it was saved"
    return None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    found = [path for path in run.glob("checkpoint-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def set_aside(run: Path) -> Path | None:
    """Move the checkpoints of an earlier run out of the way of a new one; returns where to, None without any."""
    left = checkpoints(run)
    if not left:
        return None
    number = 1
    while (place := run / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    for checkpoint in left:
        checkpoint.rename(place / checkpoint.name)
    return place


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def resolve_resume(request: bool | str | None, run: Path) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    Args:
        request: None, False or "false": afresh; True, "true" or "auto": the newest complete one in `run` (`auto`
            starts afresh when there is none); anything else is the path of a checkpoint.

    Raises:
        CheckpointError: what was asked for is missing or damaged.
    """
    word = str(request).lower()
    if request is None or word == "false":
        return None
    if word not in ("true", "auto"):
        return _verified(Path(str(request)))
    for candidate in checkpoints(run):
        trouble = problem(candidate)
        if trouble is None:
            logger.warning("Resuming from %s.", candidate)
            return candidate
        logger.warning("Passed over %s: %s.", candidate, trouble)
    if word == "true":
        raise CheckpointError(f"'{run}' holds no complete checkpoint to resume from. Remove resume_from_checkpoint.")
    return None


def _verified(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"resume_from_checkpoint: the folder '{folder}' does not exist.")
    trouble = problem(folder)
    if trouble is not None:
        raise CheckpointError(f"'{folder}' cannot be resumed from: {trouble}. Choose an older checkpoint.")
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
