"""Runs of one process that take their steps together.

Each run has a thread, and one thread works at a time: it goes on until its run has ended, or until it comes to the
gradients of a step. When all have come there, the gradients of those that are at the same step, with the same rows, are
taken in one pass (`preftune.model.stacked`), and each goes on with its own: its clipping, its optimizer, its log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from threading import Semaphore, Thread
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from preftune.model.policy import response_logps
from preftune.model.stacked import StackedDecoder, same_rows
from preftune.train.interrupt import SaveOnInterrupt
from preftune.train.record import TerminalProgress
from preftune.train.step import micro_batch_loss, step_counts
from preftune.types import PackedBatch, ResponseLogps, Step

logger = logging.getLogger(__name__)
Shares = list[tuple[Tensor, ResponseLogps]]  # of each micro-batch of a step


class Partner:
    """One run's side of a meeting. `result` is what its work returned, `error` what ended it."""

    def __init__(self, number: int, title: str, model: Any, work: Callable[[Partner], Any]) -> None:
        self.number, self.model, self.work = number, model, work
        self.progress = TerminalProgress(title, Console(stderr=True, force_terminal=False))
        self.interrupt = SaveOnInterrupt()
        self.trainer: Any = None
        self.step: Step | None = None  # whose gradients it waits for
        self.shares: Shares | Exception | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._mine, self._theirs = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._run, name=title, daemon=True)
        self._thread.start()

    def let(self) -> None:
        """Let it work until it waits, or has ended."""
        self._mine.release()
        self._theirs.acquire()

    def take_gradients(self, model: Any, step: Step) -> Shares:
        """For its trainer: wait for the others, and for the gradients."""
        self.step, self.shares = step, None
        self._theirs.release()
        self._mine.acquire()
        self.step = None
        if isinstance(self.shares, Exception):
            raise self.shares
        assert self.shares is not None
        return self.shares

    def _run(self) -> None:
        self._mine.acquire()
        try:
            self.result = self.work(self)
        except BaseException as error:  # belongs to this run alone
            self.error = error
        self.step = None
        self._theirs.release()


def hold_meeting(partners: Sequence[Partner]) -> None:
    """Let all runs work to their ends. Ctrl-C and SIGTERM reach all of them after the same step."""
    signals = SaveOnInterrupt()
    signals.on_train_begin(None, None, None)
    decoder: StackedDecoder | None = None
    ready = list(partners)
    waiting: list[Partner] = []
    try:
        while ready or waiting:
            for partner in partners:
                partner.interrupt.first, partner.interrupt.number = signals.first, signals.number
            for partner in ready:
                partner.let()
            waiting += [partner for partner in ready if partner.step is not None]
            ready = _next_of(waiting)
            waiting = [partner for partner in waiting if partner not in ready]
            if ready:
                decoder = decoder or StackedDecoder([one.model for one in partners], ready[0].number)
                _answer(decoder, ready)
    finally:
        signals.close()


def _next_of(waiting: Sequence[Partner]) -> list[Partner]:
    """Those that are furthest behind, as far as they have the same rows."""
    if not waiting:
        return []
    first = min(waiting, key=lambda partner: partner.trainer.state.global_step)
    behind = first.trainer.state.global_step
    return [one for one in waiting if one.trainer.state.global_step == behind and _same_step(first.step, one.step)]


def _same_step(one: Step, other: Step) -> bool:
    both = one.micro_batches, other.micro_batches
    return len(both[0]) == len(both[1]) and all(map(same_rows, *both))


def _answer(decoder: StackedDecoder, partners: Sequence[Partner]) -> None:
    """Give them their gradients, or what went wrong with them: memory that ended makes each cut its step smaller."""
    try:
        found = joint_gradients(decoder, partners)
    except RuntimeError as error:
        for partner in partners:
            partner.shares = error
        return
    for partner, shares in zip(partners, found, strict=True):
        partner.shares = shares


def joint_gradients(decoder: StackedDecoder, partners: Sequence[Partner]) -> list[Shares]:
    """Add up each one's gradients of its step; as many at a time as the tokens of a micro-batch allow."""
    limit = partners[0].trainer.cut.max_tokens
    found: list[Shares] = [[] for _ in partners]
    for number, batch in enumerate(partners[0].step.micro_batches):
        size = len(partners) if limit is None else max(1, limit // batch.tokens)
        for start in range(0, len(partners), size):
            some = partners[start : start + size]
            batches = [partner.step.micro_batches[number] for partner in some]
            for shares, share in zip(found[start : start + size], _shares(decoder, some, batches), strict=True):
                shares.append(share)
    return found


def _shares(decoder: StackedDecoder, partners: Sequence[Partner], batches: Sequence[PackedBatch]) -> Shares:
    with partners[0].trainer.compute_loss_context_manager():
        states = decoder.states([partner.number for partner in partners], batches[0])
        shares = [_share(*each) for each in zip(partners, batches, states, strict=True)]
    torch.autograd.backward([loss for loss, _ in shares])
    return [(loss.detach(), policy) for loss, policy in shares]


def _share(partner: Partner, batch: PackedBatch, states: Tensor) -> tuple[Tensor, ResponseLogps]:
    head = partial(response_logps, partner.model.get_base_model(), states=states)
    return micro_batch_loss(head, batch, partner.trainer.loss, step_counts(partner.step))
