"""The logging window that is open when a checkpoint is saved: a resume goes on in it, so that no log line loses steps.

The sums are those over all processes; of a resumed run the first process holds them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from preftune.train.best import find_best
from preftune.train.metrics import MetricSums

FILE = "window.json"


@dataclass(frozen=True)
class Window:
    """loss: the sum of its steps' losses; first: the step of the last log line; sums: (sums, counts) by `names`.

    skipped: steps that the run has left out so far (`preftune.train.nonfinite`).
    """

    loss: float = 0.0
    first: int = 0
    seconds: float = 0.0
    tokens: int = 0
    names: list[str] = field(default_factory=list)
    sums: list[list[float]] | None = None
    skipped: int = 0

    @classmethod
    def of(cls, trainer: Any, summed: Callable[[Tensor], Tensor]) -> Window:
        """The trainer's open window; every process calls this."""
        metrics: MetricSums = trainer.metrics
        totals = summed(torch.tensor([metrics.tokens, float(trainer._tr_loss)], dtype=torch.float64)).tolist()
        return cls(
            loss=totals[1] / trainer.accelerator.num_processes,
            first=trainer._globalstep_last_logged,
            seconds=time.perf_counter() - trainer.window_start,
            tokens=int(totals[0]),
            names=list(metrics.names),
            sums=None if metrics.sums is None else summed(metrics.sums).tolist(),
            skipped=trainer.guard.skipped,
        )

    def reopen(self, trainer: Any) -> None:
        """Go on in it, from the step of the checkpoint."""
        metrics: MetricSums = trainer.metrics
        trainer._tr_loss += self.loss
        trainer._globalstep_last_logged = self.first
        trainer.guard.skipped = self.skipped
        trainer.window_start = time.perf_counter() - self.seconds
        if self.sums is None:
            return
        share = 1 if trainer.is_world_process_zero() else 0
        wide = torch.float32 if trainer.args.device.type == "mps" else torch.float64
        metrics.names = tuple(self.names)
        metrics.sums = torch.tensor(self.sums, dtype=wide, device=trainer.args.device) * share
        metrics.tokens = self.tokens * share

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: Path) -> Window | None:
        """That of a checkpoint; None of one that was saved without."""
        path = checkpoint / FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


class ReopenWindow(TrainerCallback):
    """Goes on in the window of the checkpoint, once the Trainer has set its own counters back.

    Where and how often a run writes may change: what the checkpoint's state says of that is set right.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)
        find_best(state, Path(args.output_dir))
        if self.trainer.window is not None:
            self.trainer.window.reopen(self.trainer)
