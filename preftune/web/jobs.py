"""The training that the page started: a process of its own, one at a time, that saves when it is stopped.

RUNS/.web/NAME.yaml   the recipe        RUNS/.web/NAME.out   what the run said
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import RecipeError, TrainingError

TAIL = 20_000  # bytes of the output that are shown
LOGIN = "PREFTUNE_WEB_AUTH"  # of the page, not of the run
PATIENCE = 120  # seconds to save in, when the page ends


@dataclass
class Jobs:
    """Args:
    runs: the folder of the runs.
    """

    runs: Path
    name: str = ""
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def command(self, name: str) -> list[str]:
        return ["preftune", "train", str(self._file(name, ".yaml"))]

    def shown_command(self, name: str) -> str:
        return shlex.join(self.command(name))

    def start(self, name: str, text: str) -> None:
        """Write the recipe and train by it.

        Raises:
            TrainingError: a run of the page is going on.
            RecipeError: there is a run of that name.
        """
        with self.lock:
            if self.running:
                raise TrainingError(f"The run '{self.name}' is going on. Stop it, or wait for its end.")
            folder = self.runs / name
            if folder.exists() and any(folder.iterdir()):
                raise RecipeError(f"There is a run '{name}' already. Give this one another name.")
            self._file(name, ".yaml").parent.mkdir(parents=True, exist_ok=True)
            self._file(name, ".yaml").write_text(text, encoding="utf-8")
            words = [sys.executable, "-m", *self.command(name)]
            with self._file(name, ".out").open("wb") as out:
                self.process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={key: value for key, value in os.environ.items() if key != LOGIN},
                )
            self.name, self.stopping = name, False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Ask the run to save after the step in hand and to end; asked once more, it ends at once."""
        with self.lock:
            if self.process is not None and self.running:
                self.stopping = True
                os.killpg(self.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """The page ends: the run saves and ends with it. One that saves already is not asked once more."""
        if not self.stopping:
            self.stop()
        if self.process is not None:
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def state(self) -> dict[str, Any]:
        """name; state: none, running, stopping or ended; exit_code; output: the end of what it said."""
        if self.process is None:
            return {"name": "", "state": "none", "exit_code": None, "output": ""}
        code = self.process.poll()
        state = "ended" if code is not None else "stopping" if self.stopping else "running"
        return {"name": self.name, "state": state, "exit_code": code, "output": self._tail()}

    def _tail(self) -> str:
        with self._file(self.name, ".out").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode("utf-8", errors="replace")

    def _file(self, name: str, suffix: str) -> Path:
        return self.runs / ".web" / f"{name}{suffix}"
