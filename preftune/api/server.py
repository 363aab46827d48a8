"""A server process: socket, signals and an end in order.

The first SIGTERM or Ctrl-C ends it in order: nothing new is taken, requests that have no token yet get 503, answers
that are being written have `grace` seconds to come to their end, and are broken off with an error then. A second signal
ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from preftune.errors import MissingExtraError, PreftuneError

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtraError("preftune serve", "serve") from error

from preftune.api.app import build_app
from preftune.api.door import Door, Rules, error_body
from preftune.api.service import Service

log = logging.getLogger(__name__)
CONNECTIONS = 1000  # open at the same time; more get 503
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ServeError(PreftuneError):
    """The server cannot listen there."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is taken and does not listen yet; port 0 takes a free one.

    Raises:
        ServeError: the address is in use or not of this machine.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, number)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as cause:
        said = f"{host}:{port} cannot be listened at: {cause.strerror or cause}. Give another --port or --host."
        raise ServeError(said) from cause
    return taken


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def serve(service: Service, listener: socket.socket, rules: Rules, *, grace: float = 30.0) -> None:
    """Answer until a signal comes.

    Args:
        listener: as `bind` gives it.
        grace: seconds that running answers have after the first signal.
    """
    asyncio.run(build_server(service, rules, grace=grace).serve(sockets=[listener]))


def build_server(service: Service, rules: Rules, *, grace: float = 30.0) -> uvicorn.Server:
    """A server that is not started."""
    config = uvicorn.Config(
        Door(build_app(service), rules, service.metrics),  # type: ignore[arg-type]
        http=_PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(grace) + 5,
    )
    return _Server(config, service, grace)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self.service, self.grace = service, grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = self.service.batch.stopping = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        batch = self.service.batch
        log.info("Shutting down: %d answers are written or wait. A second signal ends them at once.", batch.load)
        batch.drop(lambda ticket: not ticket.begun)
        broken_off = asyncio.get_running_loop().call_later(self.grace, batch.drop, lambda ticket: True)
        await super().shutdown(sockets)
        broken_off.cancel()


class _PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, where a client has a time to begin a request, and what is no HTTP gets an error in JSON."""

    PATIENCE = 10.0  # seconds from a connection, or the end of an answer, to the end of a request's headers
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(400, msg)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        parts = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """The clock runs while no request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(self.PATIENCE, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
