"""One process at a file. A lock ends with its process, however that ends.

`Lock` guards a file by a second one beside it, which says who holds it, and is given back when nobody refers to it.
`open_alone` holds the file that it opens, for a program that writes one file and is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import BinaryIO

from preftune.errors import CheckpointError, DataError

log = logging.getLogger(__name__)


class Lock:
    """The right to write a file, held until `close` or until nobody refers to it.

    Args:
        path: what is written; the lock itself is `path`.lock, which stays, and says who holds it.

    Raises:
        CheckpointError: another process has it.
        OSError: the lock's file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        self.close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            self.close()
            raise CheckpointError(
                f"{path}: {holder} is writing it. Wait until that ends, or stop it; then start again to go on."
            ) from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); do not start the job twice.", path, error.strerror)
            return
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def open_alone(path: Path) -> BinaryIO:
    """Open a file to read and to append, made where there is none, and hold it until it is closed.

    The lock is of the process: threads share it, and it is lost when the process closes the file, whoever opened it.

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
