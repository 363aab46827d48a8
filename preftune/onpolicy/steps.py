"""A step of the chain: one of our verbs in a process of its own, and the record of those that are done.

    steps.json     {"round-1 train": {"command": "preftune train ...", "seconds": 12.3, "recipe": "9f0c..."}, ...}

`recipe` is a hash of the file that the step trained by. A signal is passed on to the step, which saves and ends; then
the chain ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from preftune.errors import CheckpointError, Interrupted, TrainingError

log = logging.getLogger(__name__)
PORT = 29761
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Step:
    """One command.

    name: in the record; words: the verb and what follows; shared: whether processes share it; recipe: the text of the
    file that `words` name second, which is written for it.
    """

    name: str
    words: tuple[str, ...]
    shared: bool = False
    recipe: str | None = None

    @property
    def said(self) -> str:
        return shlex.join(["preftune", *self.words])


class Record:
    """The steps that are done, with the command of each and the seconds it took.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.done: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        except ValueError:
            self.done = {"": {}}
        if not isinstance(self.done, dict) or not all(
            isinstance(one, dict) and "command" in one for one in self.done.values()
        ):
            raise CheckpointError(f"{path}: is damaged. Delete it: each step finds by itself what it has done.")

    def do(self, step: Step, processes: int) -> None:
        """Run a step, unless it is done.

        Raises:
            TrainingError: it failed.
            CheckpointError: it was done by another command or recipe.
            Interrupted: a signal has stopped it.
        """
        if step.name in self.done:
            self._check_same(step)
            return
        log.info("%s: %s", step.name, step.said)
        if step.recipe is not None:
            Path(step.words[1]).write_text(step.recipe, encoding="utf-8")
        started = time.monotonic()
        code, stopped = run(_launch(step.words, processes), _environment())
        if code == 0:
            self._add(step, round(time.monotonic() - started, 1))
        if stopped is not None:
            raise Interrupted(
                f"in the step '{step.name}'; the same command goes on from there.", exit_code=128 + stopped
            )
        if code:
            raise TrainingError(
                f"The step '{step.name}' ended with exit code {code}; its own line above says why. When that is "
                f"mended, the same command goes on from there. The step alone: {step.said}"
            )

    def _add(self, step: Step, seconds: float) -> None:
        self.done[step.name] = {"command": step.said, "seconds": seconds}
        if step.recipe is not None:
            self.done[step.name]["recipe"] = _hash(step.recipe)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.path)

    def _check_same(self, step: Step) -> None:
        before = self.done[step.name]
        if before["command"] != step.said:
            raise CheckpointError(
                f"{self.path.parent}: the step '{step.name}' was done by `{before['command']}`, and would be "
                f"`{step.said}` now. Set the recipe back, or give another output_dir."
            )
        if step.recipe is not None and before.get("recipe") != _hash(step.recipe):
            raise CheckpointError(
                f"{self.path.parent}: the step '{step.name}' was done by another recipe: "
                f"{_difference(Path(step.words[1]), step.recipe)}. Set it back, or give another output_dir."
            )


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Run a command to its end; returns its exit code, and the signal that came in the meantime and was passed on."""
    if threading.current_thread() is not threading.main_thread():  # signals reach that one
        return subprocess.run(command, env=environment, check=False).returncode, None
    came: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if child is not None and not (number == signal.SIGINT and _in_terminal()):
            child.send_signal(number)

    kept = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in kept.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(command, env=environment)
        if came:
            child.send_signal(came[0])
        code = child.wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    return code, came[0] if came else None


def _in_terminal() -> bool:
    """Whether Ctrl-C reaches the step by itself: a terminal sends it to all processes in its foreground."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _launch(words: Sequence[str], processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "preftune", *words]
    launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(PORT)]
    return [sys.executable, "-m", *launcher, "-m", "preftune", *words]


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "PREFTUNE_STEP": "1"}  # a signal may reach it twice: see preftune.train.interrupt


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _difference(file: Path, text: str) -> str:
    """Between the recipe in a file and the text of another."""
    try:
        old = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        old = None
    new = yaml.safe_load(text)
    if not isinstance(old, dict):
        return f"{file} is not the one it trained by"
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    return "; ".join(changes) or f"{file} has been changed since"
