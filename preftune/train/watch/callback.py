"""When a run is looked at, and what follows from a collapse.

A look is taken at the start, at every evaluation, every `watch_steps` steps and at the end. Its figures are logged as
`watch/...`, its answers are lines of `watch.jsonl`. On the first sign of a collapse:

    warn       one line; the run goes on
    stop       the run ends with an error
    rollback   the run ends well, and its model is that of the last checkpoint that was judged healthy

With the last two every checkpoint is looked at before it is saved, and a collapsed one is not; a look that fails ends
the run. rollback saves a checkpoint at every healthy look besides, so that there is something to go back to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from preftune.errors import CollapseError, RecipeError, TrainingError
from preftune.objectives.base import Reads
from preftune.train.checkpoint import ANSWERS, checkpoints, step_of
from preftune.train.record import read_log
from preftune.train.watch.look import LookFailed, first_look, look
from preftune.train.watch.measures import Answered, Measures, measure
from preftune.train.watch.rows import WatchedRow, choose_rows
from preftune.train.watch.verdict import Settings, Sign, advice, alarm, signs_of
from preftune.types import Layout

logger = logging.getLogger(__name__)
LOOKS, FEWEST_STEPS = 10, 10  # of a run where nothing else is said; steps between two of them
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
ACTIONS = ("warn", "stop", "rollback")
KEPT = ("began", "last", "looks", "best_chosen", "healthy", "cause", "lines")  # of a watch, in a checkpoint


class Watch(TrainerCallback):
    """See the module. `start` are the answers of the start, which a checkpoint keeps (`save`, `load`)."""

    FILE = "watch.json"

    def __init__(self, trainer: Any, rows: Sequence[WatchedRow], steps: int | None, action: str) -> None:
        self.trainer, self.rows, self.steps, self.action = trainer, rows, steps, action
        self.start: list[Answered] = []
        self.began = 0  # the step of the start
        self.last, self.looks, self.seconds = -1, 0, 0.0
        self.best_chosen: float | None = None  # of the looks so far
        self.healthy: int | None = None  # the step of the newest checkpoint that was judged healthy
        self.loaded: Path | None = None  # the checkpoint that was gone on with, where it is the healthy one
        self.no_start = "this checkpoint was saved without one"
        self.rolled_back_to: int | None = None
        self.said: set[str] = set()
        self.collapsed = False
        self.accuracy: float | None = None  # of the training pairs, in the newest log line
        self.cause = ""  # of the first sign
        self.lines: list[str] = []

    # when

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = self.steps or max(FEWEST_STEPS, math.ceil(state.max_steps / LOOKS))
        self._open_answers(state.global_step)
        if self.start:
            return
        self.began = self.last = state.global_step
        if state.global_step:
            logger.warning("Watch: %s; what follows is held against step %d.", self.no_start, self.began)
        self._take(state, first=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = state.global_step - self.last >= self.steps or state.global_step == state.max_steps
        self._act(args, state, control, due)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.collapsed and self.action != "warn":  # the loop was left: nothing more of this model
            control.should_evaluate = control.should_save = control.should_log = False
            return
        self._act(args, state, control, due=False)

    def _act(self, args: Any, state: Any, control: Any, due: bool) -> None:
        judges = self.action != "warn"
        if not self.start or not (due or control.should_evaluate or (judges and control.should_save)):
            return
        if state.global_step != self.last:
            self._take(state)
        if not judges:
            return
        if self.collapsed:
            self._end(state, control)
        elif self.action == "rollback":
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.action != "warn" and self.last == state.global_step:
            self.healthy = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.accuracy = (logs or {}).get("rewards/accuracies", self.accuracy)

    # a look

    def _take(self, state: Any, first: bool = False) -> None:
        trainer, began = self.trainer, time.perf_counter()
        try:
            now = first_look(trainer, self.rows, trainer.args.seed) if first else look(trainer, self.rows, self.start)
        except LookFailed as cause:
            if self.action != "warn":
                raise TrainingError(
                    f"on_collapse: {self.action}: the look at step {state.global_step} failed ({cause}); "
                    f"{self._left()}. Mend the cause, or set on_collapse: warn, which goes on without a watch."
                ) from None
            logger.warning("No collapse watch from step %d on: the model gives no answers (%s).", self.last, cause)
            self.start = []
            return
        self.start = now if first else self.start
        self.last, self.looks = state.global_step, self.looks + 1
        start, measures = (measure(self.rows, found, self.start) for found in (self.start, now))
        signs = signs_of(start, measures, self._settings(), self.best_chosen)
        self.best_chosen = max(measures.chosen, measures.chosen if self.best_chosen is None else self.best_chosen)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        trainer.window_start += seconds  # training throughput leaves looks out
        asked = trainer.control.should_log
        trainer.log(measures.to_log())
        trainer.control.should_log = asked  # which a line takes back
        self._write_answers(state, measures, signs, now)
        if signs:
            self._judge(state, signs)

    def _judge(self, state: Any, signs: list[Sign]) -> None:
        self.collapsed = True
        self.cause = self.cause or advice(self._settings(), self.accuracy, state.global_step / state.max_steps)
        new = {sign.name for sign in signs} - self.said
        self.said |= new
        if new:  # each sign is said once
            self.lines.append(alarm(state.global_step, state.max_steps, signs, self.cause))
            logger.warning(self.lines[-1])

    def _settings(self) -> Settings:
        loss = self.trainer.loss
        takes_term = loss.objective.layout in (Layout.PAIRED, Layout.RANKED) and loss.objective.reads == Reads.LOGPS
        lengths = [max(map(len, row.responses)) + 1 for row in self.rows]
        return Settings(
            self.trainer.args.learning_rate,
            loss.sft_weight if takes_term else None,
            getattr(loss.objective, "beta", None) if loss.objective.needs_reference else None,
            sum(lengths) / len(lengths),
        )

    # what follows

    def _end(self, state: Any, control: Any) -> None:
        if self.action == "rollback" and self.healthy is not None:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False
            logger.warning("Watch: the run ends here, and its model is that of step %d.", self.healthy)
            return
        raise CollapseError(f"The model collapses at step {state.global_step}; {self._left()}. Cause: {self.cause}")

    def _left(self) -> str:
        return (
            "there is no earlier checkpoint" if self.healthy is None else f"step {self.healthy} is the last healthy one"
        )

    @property
    def goes_back(self) -> bool:
        """Whether the run has collapsed, and is rolled back."""
        return self.collapsed and self.action == "rollback"

    def settle(self) -> None:
        """After training: of a run that was rolled back, load the model of its healthy checkpoint.

        Where the best model is asked for, it is loaded already. Every process must call this.

        Raises:
            TrainingError: somebody has removed it.
        """
        best = self.trainer.args.load_best_model_at_end and self.trainer.state.best_model_checkpoint
        if not self.goes_back or best:
            return
        folder = Path(self.trainer.args.output_dir)
        found = [*checkpoints(folder), *([] if self.loaded is None else [self.loaded])]
        kept = next((path for path in found if path.is_dir() and step_of(path) == self.healthy), None)
        if kept is None:
            raise TrainingError(
                f"on_collapse: rollback: the checkpoint of step {self.healthy}, the last healthy one, is no longer in "
                f"'{folder}'. Start afresh, or go on from an older one."
            )
        if self.trainer.is_deepspeed_enabled:  # the engine has weights of its own
            strict = not hasattr(self.trainer.model, "peft_config")
            deepspeed_load_checkpoint(self.trainer.model_wrapped, str(kept), load_module_strict=strict)
        else:
            self.trainer._load_from_checkpoint(str(kept))
        self.rolled_back_to = self.healthy

    def summary(self, loop: float) -> dict[str, Any]:
        """For `summary.json`; `loop`: seconds of the training loop, in which the watch's are."""
        return {
            "looks": self.looks,
            "prompts": len(self.rows),
            "seconds": round(self.seconds, 3),
            "share": round(self.seconds / max(loop, 1e-9), 4),
            "signs": sorted(self.said),
            "lines": self.lines,
            "rolled_back_to": self.rolled_back_to,
        }

    # what is kept

    def save(self, folder: Path) -> None:
        if self.start:
            kept = {name: getattr(self, name) for name in KEPT}
            kept |= {
                "rows": self.rows_hash,
                "said": sorted(self.said),
                "start": [asdict(found) for found in self.start],
            }
            (folder / self.FILE).write_text(json.dumps(kept), encoding="utf-8")

    @property
    def rows_hash(self) -> str:
        """A hash of what is watched."""
        ids = [[row.prompt_ids, row.chosen_ids] for row in self.rows]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    def load(self, checkpoint: Path) -> None:
        path = checkpoint / self.FILE
        if not path.is_file():
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
        start = [Answered.from_dict(values) for values in kept["start"]]
        if len(start) != len(self.rows) or kept.get("rows", self.rows_hash) != self.rows_hash:
            self.no_start = "this checkpoint was watched with other prompts"
            return
        for name in KEPT:
            setattr(self, name, kept[name])
        self.start, self.said = start, set(kept["said"])
        if self.last == step_of(checkpoint) and not self.said:  # judged before it was saved
            self.healthy, self.loaded = self.last, checkpoint

    def _open_answers(self, step: int) -> None:
        if not self.trainer.is_world_process_zero():
            return
        path = Path(self.trainer.args.output_dir) / ANSWERS
        kept = [record for record in read_log(path) if step and record["step"] <= step]
        if path.exists():
            path.write_text("".join(map(_line, kept)), encoding="utf-8")

    def _write_answers(self, state: Any, measures: Measures, signs: Sequence[Sign], now: Sequence[Answered]) -> None:
        if not self.trainer.is_world_process_zero():
            return
        tokenizer = self.trainer.processing_class
        read = (lambda ids: ids) if tokenizer is None else (lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        record = {
            "step": state.global_step,
            **measures.to_log(),
            "signs": [sign.name for sign in signs],
            "answers": [
                {"prompt": read(row.prompt_ids), "answer": read(found.answer), "ended": found.ended}
                for row, found in zip(self.rows, now, strict=True)
            ],
        }
        folder = Path(self.trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    """Readable as it stands; a dying model writes characters that others take for the end of a line."""
    return json.dumps(record, ensure_ascii=False).translate(LINE_ENDS) + "\n"


def watch_collapse(trainer: Any, prompts: int = 16, steps: int | None = None, action: str = "warn") -> Watch | None:
    """Watch the training of a `PreferenceTrainer`; returns the callback, None where the run cannot be watched.

    Args:
        prompts: rows that are answered, drawn by the seed from the evaluation set, else from what is trained on.
        steps: between two looks beside those at evaluations; None: ten looks, at least ten steps apart.
        action: warn, stop or rollback, see the module.

    Raises:
        RecipeError: there is no such action, or an engine could not go back.
        TrainingError: `action` needs a watch, and this run cannot have one.
    """
    if action not in ACTIONS:
        raise RecipeError(f"'on_collapse' must be one of {', '.join(ACTIONS)}, found {action!r}.")
    engine = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if action == "rollback" and engine and trainer.args.save_only_model:
        raise RecipeError(
            "'on_collapse' rollback goes back to a checkpoint, and FSDP and DeepSpeed read none that has the model "
            "alone. Set save_only_model: false, or on_collapse: stop."
        )
    why, rows = _unwatchable(trainer), []
    if why is None:
        rows = _rows(trainer, prompts)
        why = None if rows else "no prompt is short enough to be answered"
    if why is not None:
        if action != "warn":
            raise TrainingError(f"on_collapse: {action} needs the collapse watch, and there is none: {why}. Set warn.")
        logger.info("No collapse watch: %s.", why)
        return None
    watch = Watch(trainer, rows, steps, action)
    trainer.add_callback(watch)
    trainer.watch = watch
    return watch


def _unwatchable(trainer: Any) -> str | None:
    if trainer.loss.objective.reads == Reads.SCORES:
        return "a model that scores gives no answers"
    return None


def _rows(trainer: Any, prompts: int) -> list[WatchedRow]:
    known = list(chain.from_iterable(trainer._eval_sets().values()))
    if not known:
        known = trainer._stream.first if trainer._stream else trainer.train_dataset
    config = trainer.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return choose_rows(known, prompts, trainer.args.seed, trainer.loss.objective.layout, positions)
