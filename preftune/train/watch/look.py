"""One look at a model: greedy answers to the watched prompts, and the log-probs of what is already written.

Nothing of the run is touched: no draw from its generators, no gradient, training mode and generation settings put back.
The processes of a run share the rows, and all of them get what was found. Where an engine holds the weights in pieces
(FSDP2, ZeRO-3), every forward pass needs all processes: each makes as many as the others, one token at a time until the
last of them has its answers, and one that fails takes the run with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from preftune.errors import TrainingError
from preftune.model.load import one_line
from preftune.model.reference import evaluating
from preftune.model.sharding import is_sharded, to_pieces
from preftune.model.value_head import base_of
from preftune.train.ppo.sampling import Response, Sampling, ending_tokens, sample
from preftune.train.step import build_step
from preftune.train.watch.measures import Answered
from preftune.train.watch.rows import ANSWER_TOKENS, WatchedRow
from preftune.types import TokenizedGroup

Found = TypeVar("Found")
MOST_TOKENS = 4096  # of prompts that are answered together, where the run sets no budget of its own


class LookFailed(Exception):
    """A process could not look: out of memory, or a model that cannot be sampled from. All processes raise it."""


@torch.no_grad()
def first_look(trainer: Any, rows: Sequence[WatchedRow], seed: int) -> list[Answered]:
    """Of the model of the start, which is drawn from besides. Every process must call this.

    Raises:
        LookFailed: with the cause.
        TrainingError: the same, where the weights are in pieces.
    """

    def draw() -> list[list[int]]:
        with _own_generator(trainer, seed), trainer.accelerator.autocast():
            return [answer.ids for answer in _answers(trainer, rows, rows, temperature=1.0)]

    # all rows by every process, so that what is drawn does not depend on their number
    return _looked(trainer, rows, _of_all_ranks(draw, trainer)[0])


@torch.no_grad()
def look(trainer: Any, rows: Sequence[WatchedRow], start: Sequence[Answered]) -> list[Answered]:
    """Of the model as it is now. Every process must call this.

    Raises:
        LookFailed: with the cause.
        TrainingError: the same, where the weights are in pieces.
    """
    return _looked(trainer, rows, [found.drawn for found in start])


def _looked(trainer: Any, rows: Sequence[WatchedRow], drawn: Sequence[list[int]]) -> list[Answered]:
    """`drawn` is the same in all processes; each does its part, in as many forward passes as the others."""
    rank, ranks = trainer.args.process_index, trainer.args.world_size

    def find() -> tuple[list[Response], dict[int, tuple[float, float]]]:
        own = [rows[(rank + turn * ranks) % len(rows)] for turn in range(math.ceil(len(rows) / ranks))]
        with _own_generator(trainer, seed=0), trainer.accelerator.autocast():
            found = _answers(trainer, own, rows, temperature=0.0), _logps(trainer, rows, drawn)
        to_pieces(trainer.model)
        return found

    every = _of_all_ranks(find, trainer)
    logps = {place: pair for _, part in every for place, pair in part.items()}
    answers = [every[row % ranks][0][row // ranks] for row in range(len(rows))]
    return [
        Answered(answer.ids[:-1] if answer.ended else answer.ids, answer.ended, logps[row][0], ids, logps[row][1])
        for row, (answer, ids) in enumerate(zip(answers, drawn, strict=True))
    ]


def _answers(trainer: Any, own: Sequence[WatchedRow], rows: Sequence[WatchedRow], temperature: float) -> list[Response]:
    """To `own`, some of all `rows`; how many run together is the same in all processes."""
    longest = max(len(row.prompt_ids) for row in rows)
    batch = max(1, (trainer.cut.max_tokens or MOST_TOKENS) // (longest + ANSWER_TOKENS))
    sampling = Sampling(ANSWER_TOKENS, temperature, _ends(trainer), batch, in_pieces=is_sharded(trainer.model))
    return sample(trainer.model, [row.prompt_ids for row in own], sampling, trainer.args.device)


def _ends(trainer: Any) -> tuple[int, ...]:
    if trainer.processing_class is not None:
        return ending_tokens(trainer.model, trainer.processing_class, "eos")
    named = base_of(trainer.model).generation_config.eos_token_id
    return tuple(named) if isinstance(named, list) else (named,)


def _logps(trainer: Any, rows: Sequence[WatchedRow], drawn: Sequence[list[int]]) -> dict[int, tuple[float, float]]:
    """Of the chosen response and of what was drawn, by the row's number: this process's share, packed as a step is."""
    args = trainer.args
    pairs = zip(rows, drawn, strict=True)
    groups = [TokenizedGroup(row.prompt_ids, [row.chosen_ids, ids], row.origin) for row, ids in pairs]
    ranked = {"rank": args.process_index, "ranks": args.world_size}
    step = build_step(groups, trainer.cut, packing=trainer._packing, **ranked).to(args.device)
    found: dict[int, tuple[float, float]] = {}
    with evaluating(trainer.model):
        for batch, places in zip(step.micro_batches, step.places, strict=True):
            sums = trainer.model(batch=batch).sums.tolist()
            if batch.weights.any():  # else it fills up, so that all processes have as many
                found |= {place: (chosen, other) for place, (chosen, other) in zip(places, sums, strict=True)}
    return found


@contextmanager
def _own_generator(trainer: Any, seed: int) -> Iterator[None]:
    """Draws come from the seed, and the run's own generators are where they were."""
    devices = {trainer.args.device, *(weight.device for weight in trainer.model.parameters())}
    kinds = {device.type for device in devices} - {"cpu"}
    mps = torch.mps.get_rng_state() if "mps" in kinds else None
    numbered = [device for device in devices if device.type not in ("cpu", "mps")]
    with torch.random.fork_rng(numbered, device_type=numbered[0].type if numbered else "cuda"):
        torch.manual_seed(seed)
        yield
    if mps is not None:
        torch.mps.set_rng_state(mps)


def _of_all_ranks(find: Callable[[], Found], trainer: Any) -> list[Found]:
    """What each process has found."""
    rank, ranks = trainer.args.process_index, trainer.args.world_size
    own: list[Any] = [None, None]  # what was found, or why nothing
    try:
        own[0] = find()
    except Exception as cause:  # whatever a model's own code raises: it is said, and the run goes on without a watch
        own[1] = one_line(cause)
        if ranks > 1 and is_sharded(trainer.model):
            raise TrainingError(
                f"Collapse watch: process {rank} could not look at step {trainer.state.global_step} ({own[1]}), and "
                "the others wait for its part of the weights. Mend the cause, or go on with watch: false."
            ) from cause
    every: list[Any] = [own] * ranks
    if ranks > 1:
        dist.all_gather_object(every, own)
    for _, why in every:
        if why is not None:
            raise LookFailed(why)
    return [found for found, _ in every]
