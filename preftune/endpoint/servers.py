"""Which of several servers takes the next request: the one that would be done with it first. A failing one rests.

A thread has one request under way: it takes a server, and says afterwards how that went.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

LONGEST_REST = 60.0  # seconds
SUSPICIOUS = 3  # failures in a row
WEIGHT = 0.2  # of the last reply in a server's mean time
MOST_DOUBLINGS = 20  # for failures in a row: more would be no float in the end


@dataclass
class Server:
    """One server and what is known of it.

    since: when each request under way was begun, by thread; `seconds`: what a reply takes there, a running mean;
    `failures`: in a row; `rest_until`: on the monotonic clock, as `since`; `dropped`: why it is not asked any more.
    """

    url: str
    since: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    failures: int = 0
    rest_until: float = 0.0
    dropped: str | None = None

    def cost(self, usual: float, now: float) -> float:
        """About when it would be done with one more request, in seconds.

        A request that is not answered yet says that replies take at least so long; a new server is taken to be as fast
        as the fastest, and a failing one to need every request twice.
        """
        waiting = now - min(self.since.values(), default=now)
        doubled = 2 ** min(self.failures, MOST_DOUBLINGS)
        return (len(self.since) + 1) * max(self.seconds, usual, waiting) * doubled


class Servers:
    """The servers of an endpoint; threads share it."""

    def __init__(self, urls: list[str]) -> None:
        self.all = [Server(url) for url in urls]
        self._changed = threading.Condition()

    def take(self, stop: threading.Event) -> Server | None:
        """The server for a request, waiting for one to be rested; None when there is none left, or at `stop`."""
        with self._changed:
            while not stop.is_set():
                left = [server for server in self.all if server.dropped is None]
                if not left:
                    return None
                now = time.monotonic()
                awake = [server for server in left if server.rest_until <= now]
                if awake:
                    usual = min((server.seconds for server in awake if server.seconds), default=0.001)
                    server = min(awake, key=lambda one: one.cost(usual, now))
                    server.since[threading.get_ident()] = now
                    return server
                self._changed.wait(min(min(server.rest_until for server in left) - now, 0.2))
            return None

    def answered(self, server: Server, seconds: float) -> None:
        with self._changed:
            server.since.pop(threading.get_ident())
            server.failures = 0
            server.seconds += (seconds - server.seconds) * (WEIGHT if server.seconds else 1.0)
            self._changed.notify_all()

    def failed(self, server: Server, rest: float | None, seconds: float = 0.0) -> None:
        """After a failure that took `seconds`; `rest` is what the server asked for, None: it is decided here.

        One failure may be the request's; a server that goes on failing rests twice as long each time.
        """
        with self._changed:
            server.since.pop(threading.get_ident())
            server.seconds = max(server.seconds, seconds)
            server.failures += 1
            if rest is None and server.failures >= SUSPICIOUS:
                rest = 0.25 * 2 ** min(server.failures - SUSPICIOUS, MOST_DOUBLINGS)
            if rest:
                server.rest_until = max(server.rest_until, time.monotonic() + min(rest, LONGEST_REST))
            self._changed.notify_all()

    def returned(self, server: Server) -> None:
        """It was not asked after all, or the request was at fault."""
        with self._changed:
            server.since.pop(threading.get_ident())
            self._changed.notify_all()

    def drop(self, server: Server, reason: str) -> None:
        """Ask it no more."""
        with self._changed:
            server.since.pop(threading.get_ident())
            if server.dropped is None:
                server.dropped = reason
                log.warning("%s is not asked any more: %s", server.url, reason)
            self._changed.notify_all()

    @property
    def reasons(self) -> str:
        return "; ".join(f"{server.url}: {server.dropped}" for server in self.all if server.dropped)
