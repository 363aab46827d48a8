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
from preftune.lock import open_alone, whole_lines

log = logging.getLogger(__name__)


class ReplyCache:
    """The replies in a file, by what was asked of which model. Threads may share one; a second process is refused.

    Raises:
        DataError: the file cannot be read or written, another process has it, or a line in it is no reply.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        held = open_alone(self.path)
        self._held, self._file = held, held.fileno()
        self._replies = self._read()

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
        self._held.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        size = os.fstat(self._file).st_size
        lines = whole_lines(self._held)
        if sum(map(len, lines)) < size:
            log.info("%s: the last line is torn and is cut off; its request is asked again.", self.path)
        replies = {}
        for number, line in enumerate(lines, 1):
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
