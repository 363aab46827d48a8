"""What is broken in a run, as picklable calls: a kill at the n-th operation of a save, and the like."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from preftune.train import saving
from preftune.train.trainer import PreferenceTrainer

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def skip_plots() -> None:
    """They take most of the time of a run this small."""
    from preftune.train import run

    run.plot_log = lambda *_: None


def at_step(step: int, act: Callable[[], object]) -> None:
    """Do something before a step of the run."""
    usual = PreferenceTrainer.training_step

    def training_step(trainer, *arguments, **more):
        if trainer.state.global_step == step - 1:
            act()
        return usual(trainer, *arguments, **more)

    PreferenceTrainer.training_step = training_step
    skip_plots()


@dataclass
class KillInSave:
    """SIGKILL before the `at`-th operation on the disk (open, fsync, rename, delete, mkdir) in the save at `step`.

    The file that was opened last before it is cut to half, if nothing came after its opening. `at` 0 only counts, into
    `operations.txt`.
    """

    step: int
    at: int = 0
    names: list[str] = field(default_factory=list)
    writing: str | None = None
    armed: bool = False

    def __call__(self) -> None:
        skip_plots()
        self._wrap(os, "fsync", writes=False)
        self._wrap(torch, "save", writes=True)
        from transformers import modeling_utils

        self._wrap(modeling_utils, "safe_save_file", writes=True)
        sys.addaudithook(self._seen)
        write, fault = saving.SealedTrainer._write, self

        def watched(trainer, *arguments):
            fault.armed = trainer.state.global_step == fault.step
            write(trainer, *arguments)
            if fault.armed:
                fault.armed = False
                Path("operations.txt").write_text("\n".join(fault.names))

        saving.SealedTrainer._write = watched

    def _wrap(self, module, name: str, writes: bool) -> None:
        original = getattr(module, name)

        def wrapped(*arguments, **more):
            self._count(name, None)
            result = original(*arguments, **more)
            if writes:  # whoever opens the file is not Python
                self.writing = str(next(a for a in arguments if isinstance(a, str | Path)))
            return result

        setattr(module, name, wrapped)

    def _seen(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITES:
            self._count("open", arguments[0])
        elif event in CHANGES:
            self._count(event, None)

    def _count(self, name: str, path: str | None) -> None:
        if not self.armed:
            return
        self.names.append(name)
        if len(self.names) == self.at:
            if self.writing is not None and os.path.exists(self.writing):
                os.truncate(self.writing, os.path.getsize(self.writing) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.writing = path
