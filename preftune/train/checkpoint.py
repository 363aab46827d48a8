"""A checkpoint is complete or it does not exist.

It is written to `.incomplete/checkpoint-N`, listed with sizes and hashes in `manifest.json`, synced and renamed.
Resuming takes the newest folder whose manifest verifies, and names those it passed over. `rescue-N` are checkpoints of
the clock (`preftune.train.rescue`): complete like the others, and counted by themselves.
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
LOG = "log.jsonl"
ANSWERS = "watch.jsonl"  # of the collapse watch
MARGINS = "margins.jsonl"  # of every pair
SUMMARY = "summary.json"
NAME = re.compile(r"(checkpoint|rescue)-(\d+)")
RESCUES = 2  # kept: when the newest turns out damaged, there is another


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
    """The checkpoints of a run folder, rescue checkpoints among them, newest first."""
    if not run.is_dir():
        return []
    found = [path for path in run.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), path.name.startswith("checkpoint")), reverse=True)


def rescues(run: Path) -> list[Path]:
    """The rescue checkpoints of a run folder, newest first."""
    return [path for path in checkpoints(run) if path.name.startswith("rescue")]


def is_unfinished(run: Path) -> bool:
    """Whether a run was stopped there that can go on: the summary is the last thing a run writes."""
    return not (run / SUMMARY).exists() and any(problem(path) is None for path in checkpoints(run))


def set_aside(run: Path, beyond: int = -1) -> Path | None:
    """Move what an earlier run left beyond a step out of the way of the run that begins there.

    Its checkpoints, damaged ones too: they would count as the newest ones of the new run. Of a run that begins at 0,
    also the logs and the summary. Returns where to, None without any checkpoint.
    """
    left = [path for path in checkpoints(run) if step_of(path) > beyond]
    if not left:
        return None
    number = 1
    while (place := run / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    more = [run / SUMMARY, run / LOG, run / ANSWERS, run / MARGINS] if beyond < 0 else []
    for path in (*left, *(path for path in more if path.exists())):
        path.rename(place / path.name)
    return place


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name; of one that was given another name, by its manifest.

    Raises:
        CheckpointError: neither says.
    """
    name = NAME.fullmatch(checkpoint.name)
    if name:
        return int(name[2])
    try:
        return int(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"'{checkpoint}' is not a checkpoint: a folder checkpoint-N, or one with a {MANIFEST}, was expected."
        ) from None


def open_run(run: Path, resume: Path | None) -> None:
    """Make the run folder, and clear it of what an earlier run left of the steps that are to come."""
    run.mkdir(parents=True, exist_ok=True)
    earlier = set_aside(run, -1 if resume is None else step_of(resume))
    if earlier is not None:
        begins = "Starting afresh" if resume is None else f"Going on from {resume.name}"
        logger.warning("%s; later checkpoints of an earlier run are now in %s.", begins, earlier)
    (run / SUMMARY).unlink(missing_ok=True)
    if resume is None:
        (run / MARGINS).unlink(missing_ok=True)  # the new run may keep none


def resolve_resume(request: bool | str | Path | None, run: Path) -> Path | None:
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


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What its manifest says; {} without one."""
    manifest = checkpoint / MANIFEST
    return json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}


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
