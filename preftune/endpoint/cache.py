"""Replies on disk, so that nothing is asked, or paid, twice: one JSON object a line, appended as replies come.

A line is written by one call and stands whole or is the last one; a torn last line, left by a kill, is cut off when the
file is opened again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.endpoint.chat import ChatReply, ChatRequest, Choice
from preftune.errors import DataError
from preftune.lock import Lock

log = logging.getLogger(__name__)


class ReplyCache:
    """The replies in a file, by what was asked of which model. Threads may share one, processes not.

    Raises:
        CheckpointError: another process has it.
        DataError: the file cannot be read or written, or a line in it is no reply.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._held = Lock(self.path)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._replies = self._read()
        except OSError as error:
            raise DataError(
                f"{self.path}: replies cannot be kept there ({error.strerror}). Give another file."
            ) from None

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, request: ChatRequest, model: str) -> ChatReply | None:
        """What was answered to the same question, or None."""
        found = self._replies.get(request.digest(model))
        if found is None:
            return None
        return ChatReply(**{**found, "choices": tuple(Choice(**choice) for choice in found["choices"])})

    def put(self, request: ChatRequest, model: str, reply: ChatReply) -> None:
        """Keep a reply, which then survives the end of the process.

        Raises:
            DataError: the disk is full.
        """
        digest, found = request.digest(model), asdict(reply)
        line = (json.dumps({"request": digest, "reply": found}, ensure_ascii=False) + "\n").encode(
            "utf-8", "surrogatepass"
        )
        with self._lock:
            if self._file < 0:
                raise DataError(f"{self.path}: a reply came when it was closed already, and is not kept.")
            whole = self._append(line)
            if whole:
                self._replies[digest] = found
        if not whole:
            raise DataError(f"{self.path}: a reply cannot be written. Make room on the disk, and start again to go on.")

    def _append(self, line: bytes) -> bool:
        """Whether there was room for it; if not, no part of it stays."""
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) == len(line):
                return True
        except OSError:
            pass
        os.ftruncate(self._file, size)
        return False

    def close(self) -> None:
        """Keep no more, and let others have the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
        self._held.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            log.info("%s: the last line is torn and is cut off; its request is asked again.", self.path)
            os.truncate(self.path, whole)
        replies = {}
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                record = json.loads(line.decode("utf-8", "surrogatepass"))
                replies[record["request"]] = record["reply"]
                record["reply"]["choices"]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path} line {number}: expected a kept reply, found something else. Delete the line, or give "
                    "another file."
                ) from None
        return replies
