"""`margins.jsonl`: the margin of every pair at each of its visits in training, for `preftune autopsy`.

The margin is the objective's own, reward of the chosen response minus that of the rejected one (of a ranked group the
best and the worst; of a reward model the scores), under the weights before the step. A line is one optimizer step:

    {"step": 7, "sources": ["pairs.jsonl[train]"], "pairs": [[0, 12, 1908338681, 0.25, 31, 18], ...]}

a pair being source (a place in `sources`), row, a CRC of the responses' token ids (a row may give several pairs),
margin, and the tokens of both responses. Margins stay on the device until a log line or a checkpoint, which read it
anyway. All visits up to a checkpoint are on the disk before it is there, and a resume cuts the later ones off.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from preftune.train.checkpoint import MARGINS
from preftune.train.ranks import of_all_ranks
from preftune.train.record import read_log
from preftune.types import Layout, PackedBatch, Step, TokenizedGroup

logger = logging.getLogger(__name__)
Seen = tuple[str, int, int, int, int]  # source, row, digest, tokens of the chosen and of the rejected response


@dataclass(frozen=True)
class Visits:
    """Of one micro-batch; margins (G,) on the device."""

    step: int
    pairs: list[Seen]
    margins: Tensor


class MarginLog(TrainerCallback):
    """Takes the margins of a trainer's steps and writes them down; the trainer calls `open`, `add` and `flush`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / MARGINS
        self.pending: list[Visits] = []
        self.opened: list[list[Seen]] = []

    # a step

    def open(self, step: Step) -> None:
        """Note which pairs a step has, from the host's side of it, before it goes to the device."""
        self.drop()
        self.opened = [_seen(batch) if bool(batch.weights.any()) else [] for batch in step.micro_batches]

    def add(self, number: int, batch: PackedBatch, rewards: Tensor) -> None:
        """The rewards (G, K) of a micro-batch of the open step; nothing is read from the device."""
        if self.opened[number]:
            worst = batch.feedback.valid.sum(dim=1, keepdim=True) - 1
            margins = rewards[:, 0] - rewards.gather(1, worst)[:, 0]
            self.pending.append(Visits(self.trainer.state.global_step + 1, self.opened[number], margins.detach()))

    def drop(self) -> None:
        """Forget the step that is being taken: it is done again, or left out."""
        self.pending = [visits for visits in self.pending if visits.step <= self.trainer.state.global_step]

    # the file

    def flush(self, durable: bool = False) -> None:
        """Write what is pending, of all processes; every process must call this."""
        pending, self.pending = self.pending, []
        margins = torch.cat([visits.margins.float() for visits in pending]).tolist() if pending else []
        own, place = [], 0
        for visits in pending:
            own.append((visits.step, visits.pairs, margins[place : place + len(visits.pairs)]))
            place += len(visits.pairs)
        every = of_all_ranks(own)
        if not self.trainer.is_world_process_zero() or not (every or durable):
            return
        with self.path.open("a", encoding="utf-8") as file:
            for step in sorted({step for step, _, _ in every}):
                file.write(_line(step, [part[1:] for part in every if part[0] == step]))
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pending = []
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_log(self.path) if line["step"] <= state.global_step] if state.global_step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(f".{MARGINS}")  # renamed, so that a kill here loses no line
        whole.write_text("".join(map(_dumped, kept)), encoding="utf-8")
        whole.replace(self.path)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flush()


def record_margins(trainer: Any) -> MarginLog | None:
    """Keep the margins of a `PreferenceTrainer`'s pairs; None where what is trained on has no pairs."""
    if trainer.loss.objective.layout not in (Layout.PAIRED, Layout.RANKED):
        logger.info("No margins are kept: %s has no pairs.", type(trainer.loss.objective).__name__)
        return None
    log = MarginLog(trainer)
    trainer.add_callback(log)
    trainer.margins = log
    return log


def digest_of(responses: Sequence[Sequence[int]]) -> int:
    """A CRC of the token ids of a group's responses."""
    ids = [token for response in responses for token in response]
    return zlib.crc32(torch.tensor(ids, dtype=torch.int64).numpy().tobytes())


def group_key(group: TokenizedGroup) -> tuple[str, int, int]:
    """What a group's visits are found by: source, row, digest."""
    return source_of(group.origin), group.origin.row, digest_of(group.response_ids)


def source_of(origin: Any) -> str:
    return f"{origin.dataset}[{origin.split}]"


def _seen(batch: PackedBatch) -> list[Seen]:
    targets, lengths = batch.targets.numpy(), batch.lengths.tolist()
    seen, start = [], 0
    for origin, count, row in zip(batch.origins, batch.rows_per_group, lengths, strict=True):
        digest = zlib.crc32(targets[start : start + count].tobytes())
        tokens = [length for length in row if length]
        seen.append((source_of(origin), origin.row, digest, tokens[0], tokens[-1]))
        start += count
    return seen


def _line(step: int, parts: Sequence[tuple[list[Seen], list[float]]]) -> str:
    visits = [(pair, margin) for pairs, margins in parts for pair, margin in zip(pairs, margins, strict=True)]
    sources = sorted({pair[0] for pair, _ in visits})
    pairs = [
        [sources.index(source), row, digest, float(f"{margin:.6g}"), chosen, rejected]
        for (source, row, digest, chosen, rejected), margin in visits
    ]
    return _dumped({"step": step, "sources": sources, "pairs": pairs})


def _dumped(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"
