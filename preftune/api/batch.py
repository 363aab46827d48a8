"""The thread that runs the engines: requests join and leave a running batch, tokens go back to the event loop.

Answers of one model, or one adapter, are written together. Where adapters share a base model, one of them is at work at
a time: newcomers join its batch as long as nobody waits for another; then the batch ends, and the first in the queue
has its turn, with all that wait for the same adapter.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from preftune.api.served import Served
from preftune.errors import ModelError, PreftuneError
from preftune.generation import Engine, Event, Request, Sampling, VllmEngine, build_engine

log = logging.getLogger(__name__)


class BusyError(PreftuneError):
    """As many answers wait as may."""


class StoppedError(PreftuneError):
    """The server is going down."""


@dataclass(eq=False)
class Ticket:
    """A prompt on its way: `events` gets its tokens as they come, their `key` the ticket, or what error ended it."""

    model: str
    prompt: list[int]
    seeds: tuple[int, ...]
    sampling: Sampling
    events: asyncio.Queue[Event | Exception]
    begun: bool = False
    left: int = 0  # answers that are not finished
    ended: set[int] = field(default_factory=set)  # answers that are finished, by a stop string or by themselves

    def __post_init__(self) -> None:
        self.left = len(self.seeds)


class Batch:
    """Takes up tickets in the event loop and runs them in a thread of its own.

    Args:
        models: by name; of one base model where there are several.
        slots: answers that are written at the same time.
        waiting: answers that may wait for a slot.
    """

    def __init__(self, models: Mapping[str, Served], *, slots: int = 32, waiting: int = 64) -> None:
        self.models, self.slots, self.waiting = models, slots, waiting
        self.open: set[Ticket] = set()  # of the event loop
        self.stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._engines: dict[str, Engine | VllmEngine] = {}
        self._waiting: deque[Ticket] = deque()
        self._written: set[Ticket] = set()
        self._current = ""  # the model that is at work
        for name in models:
            self._engine(name)  # a model that has to answer one sequence at a time says so at the start

    # --- of the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; open tickets get an error."""
        self.drop(lambda ticket: True)
        self._inbox.put(None)

    def submit(self, *tickets: Ticket) -> None:
        """Put a request into the queue, all of its prompts or none.

        Raises:
            BusyError: too many answers wait.
            StoppedError: the server is going down.
        """
        if self.stopping:
            raise StoppedError("The server is shutting down.")
        asked = sum(ticket.left for ticket in tickets)
        if self.load + asked > self.slots + self.waiting:
            raise BusyError(
                f"{self.load} answers are written or wait, and {asked} more would be too many. Ask again in a while."
            )
        for ticket in tickets:
            self.open.add(ticket)
            self._inbox.put(partial(self._take_up, ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: its slots are free after the step that is running."""
        if ticket in self.open:
            self.open.discard(ticket)
            self._inbox.put(partial(self._give_up, ticket))

    def end(self, ticket: Ticket, index: int) -> None:
        """One answer is complete, by a stop string; no more of its tokens are needed."""
        if index in ticket.ended:
            return  # its last token came before anybody looked at the one with the stop string
        ticket.left -= 1
        ticket.ended.add(index)
        self._inbox.put(partial(self._end, ticket, index))
        if not ticket.left:
            self.open.discard(ticket)

    def drop(self, which: Callable[[Ticket], bool]) -> None:
        """End tickets with an error: the server is shutting down."""
        for ticket in [ticket for ticket in self.open if which(ticket)]:
            self.cancel(ticket)
            ticket.events.put_nowait(StoppedError("The server is shutting down."))

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run something between two steps; for what uses a model beside the engines."""
        future: Future[Any] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as cause:
                    future.set_exception(cause)

        self._inbox.put(job)
        return future

    @property
    def load(self) -> int:
        """Answers that are written or wait."""
        return sum(ticket.left for ticket in self.open)

    @property
    def running(self) -> int:
        """Answers that are written in this moment."""
        return sum(engine.load[0] for engine in list(self._engines.values()))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _deliver(self, parcels: Sequence[tuple[Ticket, Event | Exception]]) -> None:
        for ticket, event in parcels:
            if ticket not in self.open or (isinstance(event, Event) and event.index in ticket.ended):
                continue
            ticket.begun = True
            ticket.events.put_nowait(event)
            if isinstance(event, Exception):
                self.open.discard(ticket)
            elif event.answer is not None:
                ticket.ended.add(event.index)
                ticket.left -= 1
                if not ticket.left:
                    self.open.discard(ticket)

    # --- of the thread

    def _run(self) -> None:
        with suppress(_End):
            while True:
                self._read_inbox(wait=not self._waiting and not self._written)
                self._admit()
                if self._written:
                    self._step()

    def _read_inbox(self, wait: bool) -> None:
        try:
            while True:
                command = self._inbox.get(block=wait)
                wait = False
                if command is None:
                    raise _End
                command()
        except queue.Empty:
            return

    def _admit(self) -> None:
        """Hand to the engine what may join its batch."""
        if not self._waiting:
            return
        first = self._waiting[0].model
        if self._written and any(ticket.model != self._current for ticket in self._waiting):
            return  # somebody's turn comes when this batch has ended
        joining = [ticket for ticket in self._waiting if ticket.model == first]
        self._waiting = deque(ticket for ticket in self._waiting if ticket.model != first)
        for ticket in joining:
            try:
                self._engine(first).submit(Request(ticket, ticket.prompt, ticket.seeds, ticket.sampling))
                self._written.add(ticket)
            except Exception as cause:
                self._send([(ticket, cause)])

    def _step(self) -> None:
        engine = self._engine(self._current)
        try:
            events = engine.step()
        except Exception as cause:  # of the model; what it leaves behind is not to be relied on
            log.exception("A step of '%s' failed; its %d requests end.", self._current, len(self._written))
            self._send([(ticket, ModelError(f"The model failed: {cause}")) for ticket in self._written])
            self._written.clear()
            del self._engines[self._current]
            return
        self._send([(event.key, event) for event in events])  # type: ignore[misc]
        self._forget(event.key for event in events if event.answer is not None)

    def _take_up(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        if ticket in self._written:
            self._written.discard(ticket)
            self._engine(ticket.model).cancel(ticket)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def _end(self, ticket: Ticket, index: int) -> None:
        if ticket in self._written:
            self._engine(ticket.model).end(ticket, index)
            self._forget([ticket])

    def _forget(self, tickets: Iterable[Any]) -> None:
        for ticket in tickets:
            if not self._engine(self._current).holds(ticket):
                self._written.discard(ticket)

    def _engine(self, name: str) -> Engine | VllmEngine:
        """The engine of a model, which is put to work."""
        if name != self._current:
            self.models[name].use()
            self._current = name
        if name not in self._engines:
            self._engines[name] = build_engine(self.models[name].model, self.slots)
        return self._engines[name]

    def _send(self, parcels: Sequence[tuple[Ticket, Event | Exception]]) -> None:
        if parcels and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._deliver, parcels)


class _End(Exception):
    """Leave the thread."""
