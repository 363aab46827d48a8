"""One process at a file: a lock that the system frees when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import weakref
from pathlib import Path

from preftune.errors import CheckpointError

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
