"""What a run leaves in its folder while it goes: `log.jsonl`, and progress on the terminal."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from preftune.train.checkpoint import LOG

SHOWN = {  # key -> what the terminal calls it
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "logp chosen",
    "lengths/chosen": "length",
    "objective/scores": "score",
    "objective/kl": "kl",
    "lengths/response": "length",
    "tokens_per_second": "tok/s",
}


class RunLog(TrainerCallback):
    """Writes one JSON object per log event: step, epoch, seconds since the start, and the metrics.

    A resumed run goes on in the same file; what a lost process wrote past the checkpoint is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.started = time.perf_counter()
        self.spent = 0.0  # seconds of the earlier part of a resumed run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        kept = [record for record in read_log(self.path) if record["step"] <= state.global_step]
        kept = kept if state.global_step else []
        self.spent = kept[-1]["seconds"] if kept else 0.0
        self.started = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(f".{LOG}")  # renamed, so that a kill here loses no line
        whole.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        whole.replace(self.path)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # the last steps count, whatever logging_steps says

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_loss" in logs:
            return
        seconds = round(self.spent + time.perf_counter() - self.started, 3)
        record = {"step": state.global_step, "seconds": seconds, **logs}
        with self.path.open("r+", encoding="utf-8") as file:  # not made anew: a folder that is gone must not go unseen
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; none when it does not exist. A last line cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class TerminalProgress(TrainerCallback):
    """A bar with the newest metrics on a terminal; a line per log event elsewhere."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self.total = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.total = state.max_steps
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
        self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, shown="")
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        prefix = "" if "loss" in logs else "eval_"
        parts = [f"{name} {_short(logs[prefix + key])}" for key, name in SHOWN.items() if prefix + key in logs]
        if not parts:
            return
        line = " · ".join(parts)
        if self.bar is not None and not prefix:
            self.bar.update(self.task, shown=line)
            return
        at = f"{self.title} {'held-out ' if prefix else ''}{state.global_step}/{self.total}"
        self.console.print(f"{at}  {line}", highlight=False, soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def peak_memory_gib() -> float:
    """The most memory this process has held: of the GPU where there is one (the fullest of several), else resident."""
    if torch.cuda.is_available():
        return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _short(value: Any) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
