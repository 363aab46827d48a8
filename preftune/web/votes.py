"""Answers that stand side by side, and the votes for one of them: rows of a preference file.

    {"prompt": [messages], "chosen": [message], "rejected": [message], "chosen_model": ..., "rejected_model": ...,
     "chosen_finish": stop|length, "rejected_finish": ..., "time": ...}

`preftune train` reads the file as it is. The page says which answer is better, never what it was: the texts are those
that the models gave.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.types import Message

KEPT = 500  # questions that can still be voted on


@dataclass
class Answered:
    """What one model answered; `finish` is empty while it writes."""

    model: str
    prompt: tuple[Message, ...] = ()
    text: str = ""
    finish: str = ""


@dataclass
class Votes:
    """The answers that were given last, and the file of votes."""

    path: Path
    asked: OrderedDict[str, list[Answered]] = field(default_factory=OrderedDict)
    voted: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, models: Sequence[str]) -> tuple[str, list[Answered]]:
        """A number for a question to these models, and what takes up their answers."""
        key, sides = secrets.token_hex(8), [Answered(model) for model in models]
        with self.lock:
            self.asked[key] = sides
            while len(self.asked) > KEPT:
                self.voted.discard(self.asked.popitem(last=False)[0])
        return key, sides

    def vote(self, key: str, better: int) -> dict[str, Any]:
        """Add the row that says that side `better` (0 or 1) is the better one.

        Raises:
            DataError: these answers make no pair, or the file cannot be written.
        """
        with self.lock:
            sides = self.asked.get(key)
            if sides is None or len(sides) != 2:
                raise DataError("These two answers are not known any more. Ask again, and vote then.")
            if key in self.voted:
                raise DataError(f"This question was voted on already; its row is in '{self.path}'.")
            row = to_row(sides[better], sides[1 - better])
            try:
                append_line(self.path, json.dumps(row, ensure_ascii=False))
            except OSError as error:
                raise DataError(f"'{self.path}' cannot be written ({error.strerror}). Name another --votes.") from None
            self.voted.add(key)
        return row

    def count(self) -> int:
        """Rows in the file."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)


def to_row(chosen: Answered, rejected: Answered) -> dict[str, Any]:
    """
    Raises:
        DataError: the answers are not finished, empty, equal, or answer different conversations.
    """
    for side in (chosen, rejected):
        if side.finish not in ("stop", "length"):
            raise DataError(f"The answer of '{side.model}' was not written to its end. Ask again, and vote then.")
        if not side.text.strip():
            raise DataError(f"The answer of '{side.model}' is empty, which makes no row to train on.")
    if chosen.text.strip() == rejected.text.strip():
        raise DataError("Both answers are the same, so neither is better.")
    if chosen.prompt != rejected.prompt:
        raise DataError("The two models answered different conversations. Start a new one, and vote on each answer.")
    prompt = [{"role": said.role, "content": said.content} for said in chosen.prompt]
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen.text.strip()}],
        "rejected": [{"role": "assistant", "content": rejected.text.strip()}],
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        "chosen_finish": chosen.finish,
        "rejected_finish": rejected.finish,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def append_line(path: Path, line: str) -> None:
    """Add a line, durably; one that was torn before it stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
