"""The folder that is written: refused where it would lose something, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from preftune.errors import ModelError
from preftune.model.load import one_line

MANIFEST = "export.json"  # marks a folder as an export, which --overwrite may replace
GIB = 2**30


def check_target(target: Path, sources: list[Path], overwrite: bool) -> None:
    """The folder can be written, and nothing is lost by it.

    Args:
        sources: folders that are read: the target must not be one of them, hold one, or lie in one's weights.

    Raises:
        ModelError: it cannot.
    """
    there = target.absolute()
    for source in sources:
        if there.resolve() == source.resolve() or there.resolve() in source.resolve().parents:
            raise ModelError(f"--out {target}: it holds what is exported, '{source}'. Give another folder.")
    if there.is_symlink() or (there.exists() and not there.is_dir()):
        raise ModelError(f"--out {target}: it is there already and is no folder. Give another one.")
    if there.is_dir() and any(there.iterdir()):
        if not _is_export(there):
            raise ModelError(f"--out {target}: the folder holds files that are no export. Give a new or an empty one.")
        if not overwrite:
            raise ModelError(f"--out {target}: an export is there already. Give another folder, or add --overwrite.")
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ModelError(f"--out {target}: '{there}' cannot be written to. Give a folder elsewhere.")


def check_room(target: Path, needed: int) -> None:
    """Raises ModelError where the disk has no room for `needed` bytes."""
    there = target.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ModelError(
            f"--out {target}: {needed / GIB:.2f} GiB are needed, {free / GIB:.2f} are free there. Make room, or give a "
            "folder elsewhere or a smaller --dtype."
        )


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place once everything is in it, and is removed when something fails."""
    target = target.absolute()
    stage, earlier = (target.with_name(f".{target.name}.{what}") for what in ("part", "old"))
    try:
        shutil.rmtree(stage, ignore_errors=True)  # what a crash left
        stage.mkdir(parents=True)
        yield stage
        if target.is_dir() and any(target.iterdir()):
            shutil.rmtree(earlier, ignore_errors=True)
            target.rename(earlier)
        stage.replace(target)
        shutil.rmtree(earlier, ignore_errors=True)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"'{target}' could not be written ({one_line(cause)}). Make room, or give another.") from cause
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    try:
        return "preftune" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
