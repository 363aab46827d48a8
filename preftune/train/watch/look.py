"""One look at a model: greedy answers to the watched prompts, and the log-probs of what is already written.

Nothing of the run is touched: no draw from its generators, no gradient, training mode and generation settings put back.
The processes of a run share the rows, and all of them get what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from preftune.model.load import one_line
from preftune.model.value_head import base_of
from preftune.train.ppo.sampling import Sampling, ending_tokens, sample
from preftune.train.step import build_step
from preftune.train.watch.measures import Answered
from preftune.train.watch.rows import ANSWER_TOKENS, WatchedRow
from preftune.types import TokenizedGroup

MOST_TOKENS = 4096  # of prompts that are answered together, where the run sets no budget of its own


class LookFailed(Exception):
    """A process could not look: out of memory, or a model that cannot be sampled from. All processes raise it."""


@torch.no_grad()
def first_look(trainer: Any, rows: Sequence[WatchedRow], seed: int) -> list[Answered]:
    """Of the model of the start, which is drawn from besides. Every process must call this.

    Raises:
        LookFailed: with the cause.
    """

    def found() -> list[Answered]:
        with _own_generator(trainer.model, seed), trainer.accelerator.autocast():
            # by every process, so that what is drawn does not depend on their number
            drawn = [answer.ids for answer in _answers(trainer, rows, temperature=1.0)]
        return _looked(trainer, _own(trainer, rows), _own(trainer, drawn))

    return _of_all_ranks(found, trainer.args.world_size)


@torch.no_grad()
def look(trainer: Any, rows: Sequence[WatchedRow], start: Sequence[Answered]) -> list[Answered]:
    """Of the model as it is now. Every process must call this.

    Raises:
        LookFailed: with the cause.
    """
    own, drawn = _own(trainer, rows), [found.drawn for found in _own(trainer, start)]
    return _of_all_ranks(lambda: _looked(trainer, own, drawn), trainer.args.world_size)


def _own(trainer: Any, rows: Sequence[Any]) -> list[Any]:
    return list(rows[trainer.args.process_index :: trainer.args.world_size])


def _looked(trainer: Any, rows: Sequence[WatchedRow], drawn: Sequence[list[int]]) -> list[Answered]:
    with _own_generator(trainer.model, seed=0), trainer.accelerator.autocast():
        answers = _answers(trainer, rows, temperature=0.0)
        logps = _logps(trainer, rows, drawn)
    return [
        Answered(answer.ids[:-1] if answer.ended else answer.ids, answer.ended, chosen, ids, drawn_logp)
        for answer, ids, (chosen, drawn_logp) in zip(answers, drawn, logps, strict=True)
    ]


def _answers(trainer: Any, rows: Sequence[WatchedRow], temperature: float) -> list[Any]:
    if not rows:
        return []
    prompts = [row.prompt_ids for row in rows]
    together = max(1, (trainer.cut.max_tokens or MOST_TOKENS) // (max(map(len, prompts)) + ANSWER_TOKENS))
    return sample(trainer.model, prompts, Sampling(ANSWER_TOKENS, temperature, _ends(trainer), together))


def _ends(trainer: Any) -> tuple[int, ...]:
    if trainer.processing_class is not None:
        return ending_tokens(trainer.model, trainer.processing_class, "eos")
    named = base_of(trainer.model).generation_config.eos_token_id
    return tuple(named) if isinstance(named, list) else (named,)


def _logps(trainer: Any, rows: Sequence[WatchedRow], drawn: Sequence[list[int]]) -> list[tuple[float, float]]:
    """Of the chosen response and of what was drawn, for each row; packed as in evaluation."""
    if not rows:
        return []
    pairs = zip(rows, drawn, strict=True)
    groups = [TokenizedGroup(row.prompt_ids, [row.chosen_ids, ids], row.origin) for row, ids in pairs]
    step = build_step(groups, trainer.cut, packing=trainer._packing).to(trainer.args.device)
    found: dict[int, list[float]] = {}
    was_training = trainer.model.training
    trainer.model.eval()
    try:
        for batch, places in zip(step.micro_batches, step.places, strict=True):
            found |= dict(zip(places, trainer.model(batch=batch).sums.tolist(), strict=True))
    finally:
        trainer.model.train(was_training)
    return [(found[place][0], found[place][1]) for place in range(len(rows))]


@contextmanager
def _own_generator(model: Any, seed: int) -> Iterator[None]:
    """Draws come from the seed, and the run's own generators are where they were."""
    devices = {weight.device for weight in model.parameters()}
    kinds = {device.type for device in devices} - {"cpu"}
    mps = torch.mps.get_rng_state() if "mps" in kinds else None
    numbered = [device for device in devices if device.type not in ("cpu", "mps")]
    with torch.random.fork_rng(numbered, device_type=numbered[0].type if numbered else "cuda"):
        torch.manual_seed(seed)
        yield
    if mps is not None:
        torch.mps.set_rng_state(mps)


def _of_all_ranks(find: Callable[[], list[Answered]], ranks: int) -> list[Answered]:
    """In the order of the rows, which were dealt out in turn."""
    try:
        own: list[Answered] | str = find()
    except Exception as cause:  # whatever a model's own code raises: it is said, and the run goes on without a watch
        own = one_line(cause)
    every: list[Any] = [own] * ranks
    if ranks > 1:
        dist.all_gather_object(every, own)
    for part in every:
        if isinstance(part, str):
            raise LookFailed(part)
    return [every[row % ranks][row // ranks] for row in range(sum(map(len, every)))]
