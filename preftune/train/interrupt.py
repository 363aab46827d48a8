"""Ctrl-C and SIGTERM end a run after the step in hand, with a checkpoint; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from transformers import TrainerCallback

from preftune.train.ranks import agreed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2  # who starts processes passes on what may have reached them already
STARTED = frozenset({"TORCHELASTIC_RUN_ID", "PREFTUNE_STEP"})  # by torchrun, by `preftune onpolicy`


class SaveOnInterrupt(TrainerCallback):
    """`asked` once a signal has reached any process of the run; `number` is the signal."""

    def __init__(self) -> None:
        self.asked = False
        self.number = int(signal.SIGINT)
        self.previous: dict[int, Any] = {}
        self.process = os.getpid()
        self.first = 0.0
        self.epoch = 0  # that the step in hand began in

    @property
    def exit_code(self) -> int:
        """As shells count it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def _ask(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a data-loader worker, which is needed to the end of the step
            return
        if self.first:
            if STARTED & os.environ.keys() and time.monotonic() - self.first < ECHO_SECONDS:
                return
            self.close()
            signal.raise_signal(number)
            return
        self.first, self.number = time.monotonic(), number
        print("Interrupted: saving after this step (once more to stop at once).", file=sys.stderr, flush=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.asked:
            self.asked = agreed(bool(self.first), args.device)  # together: a save and a stop take every process
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        left = int(state.epoch) == self.epoch and state.global_step < state.max_steps  # the loop, within the epoch
        if self.asked and left:
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the signals back, also after an error."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
