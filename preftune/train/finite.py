"""Are the numbers of the last steps finite? Asked on the device, read when the answer has come.

Reading a GPU's flag at once would make the host wait for the step it has just queued. So the flag of a step is copied
to the host behind the step, and looked at by a later one when it has arrived; a log line, a checkpoint and the end of
training wait for it. On a CPU the answer is there when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune.errors import TrainingError
from preftune.types import Origin

Logps = tuple[Tensor, tuple[Origin, ...]]  # (G, K) sums, and where the groups come from


@dataclass(frozen=True)
class _Asked:
    """The numbers of one step and what is known of them."""

    step: int
    logps: Sequence[Logps]
    finite: Tensor  # (2,) bool on the host: log-probs, gradient
    arrived: Any  # an event, or None where the flag is there at once

    def refuse(self) -> None:
        logps, gradient = self.finite.tolist()
        if not logps:
            rows = [
                str(rows[i]) for sums, rows in self.logps for i in (~sums.isfinite()).any(1).nonzero()[:, 0].tolist()
            ]
            raise TrainingError(
                f"Log-probs became non-finite at step {self.step}, in {len(rows)} groups: {', '.join(rows[:5])}. "
                "Lower the learning rate or look at these rows; the last checkpoint is intact."
            )
        if not gradient:
            raise TrainingError(
                f"The gradient became non-finite at step {self.step}, with finite log-probs. Lower the learning rate, "
                "or use float32 or bf16; checkpoints before this step are intact."
            )


def record_event(device: torch.device) -> Any:
    """Passed when all that is queued on the device now is done; None for a device that queues nothing."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


class FiniteWatch:
    """Takes the log-probs and gradient norm of every step, and stops the run on what is not a number.

    Args:
        gradients: look at the gradient norm too (fp16 skips steps whose gradient is not finite).
        record: see `record_event`.
    """

    def __init__(self, gradients: bool = True, record: Callable[[torch.device], Any] | None = None) -> None:
        self.gradients, self.record = gradients, record or record_event
        self.logps: list[Logps] = []  # of the step that is running
        self.norm: Tensor | float | None = None
        self.asked: list[_Asked] = []

    def add(self, sums: Tensor, origins: tuple[Origin, ...]) -> None:
        self.logps.append((sums, origins))

    def refuse_non_finite(self, step: int, *, wait: bool = True) -> None:
        """Close the step `step`; look at it and those before, with `wait` False only at what is known already.

        Raises:
            TrainingError: naming the step, and the rows where log-probs did it.
        """
        self._ask(step)
        while self.asked:
            first = self.asked[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait:
                    return
                first.arrived.synchronize()
            self.asked.pop(0).refuse()

    @torch.no_grad()
    def _ask(self, step: int) -> None:
        logps, norm, self.logps, self.norm = self.logps, self.norm, [], None
        if not logps:
            return
        sums = torch.stack([sums.sum() for sums, _ in logps]).sum()
        checked = norm if self.gradients and isinstance(norm, Tensor) else torch.zeros_like(sums)
        finite = torch.stack([sums, checked.to(sums)]).isfinite()
        if self.gradients and isinstance(norm, float):  # an engine's, of the host
            finite = finite & torch.tensor([True, norm - norm == 0]).to(finite.device, non_blocking=True)
        self.asked.append(_Asked(step, logps, finite.to("cpu", non_blocking=True), self.record(sums.device)))
