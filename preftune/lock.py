"""A file that one process writes at a time. The lock ends with its process, however that ends.

It is of the process, so threads share it, and it is lost when the process closes the file, whoever opened it: what is
held is read through the object that `open_alone` gives.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from preftune.errors import DataError


def open_alone(path: Path) -> BinaryIO:
    """Open a file to read and to append, made where there is none, and hold it until it is closed.

    Raises:
        DataError: another process holds it, or it cannot be opened.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}). Give a folder that can be.") from None
        if _hold(file, path):
            return file
        file.close()


def _hold(file: BinaryIO, path: Path) -> bool:
    """False where the file was renamed or deleted by whoever held it before."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, PermissionError):
        file.close()
        raise DataError(
            f"{path}: another process is writing it. Wait for that one or stop it, or give another output."
        ) from None
    except FileNotFoundError:
        return False
    except OSError:
        return True  # a file system that knows no locks


def whole_lines(file: BinaryIO) -> list[bytes]:
    """The lines of a file that `open_alone` gave; a last one that was torn by a kill is cut off."""
    file.seek(0)
    data = file.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        file.truncate(end)
    return [line + b"\n" for line in data[:end].split(b"\n")[:-1]]
