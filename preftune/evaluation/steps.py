"""The steps of `run`, in one folder: a step whose file is there is not done again, if it was asked for the same.

run.json in the folder holds what each file was made of: model and weights, sampling, judge, files that were read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.evaluation.files import read_text, write_text
from preftune.model.place import model_folder, weights_mark

log = logging.getLogger(__name__)
RECORD = "run.json"


def once(path: Path, made_of: Mapping[str, Any], step: Callable[[], Any]) -> None:
    """Do the step that writes `path`, unless it is there.

    Raises:
        DataError: it is there, and was made of something else.
    """
    record = path.with_name(RECORD)
    known = _known(record)
    asked = json.loads(json.dumps(made_of))
    if not path.exists():
        write_text(record, json.dumps({**known, path.name: asked}, indent=2) + "\n")
        step()
        return
    before = known.get(path.name, asked)  # a file that was brought has no record
    changed = [key for key in {**before, **asked} if before.get(key) != asked.get(key)]
    if changed:
        raise DataError(f"{path}: is there already, made with other {', '.join(map(repr, changed))} ({record} says "
                        "which). Give another --folder, or delete the file.")  # fmt: skip
    log.info("%s is there already.", path)


def _known(record: Path) -> dict[str, Any]:
    if not record.exists():
        return {}
    try:
        known = json.loads(read_text(record))
        if isinstance(known, dict) and all(isinstance(made_of, dict) for made_of in known.values()):
            return known
    except ValueError:
        pass
    raise DataError(f"{record}: expected what the files beside it were made of, found something else. Give another "
                    "--folder.")  # fmt: skip


def mark_of_model(name: str | None) -> Any:
    """Name and weights; None of no model."""
    if name is None:
        return None
    folder = Path(name).expanduser()
    return [name, weights_mark(str(model_folder(folder))) if folder.is_dir() else {}]


def mark_of_file(path: str | Path | None) -> str | None:
    """A hash of what is in a file; None of none.

    Raises:
        DataError: it cannot be read.
    """
    return None if path is None else hashlib.blake2b(read_text(path).encode(), digest_size=16).hexdigest()
