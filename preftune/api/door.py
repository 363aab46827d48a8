"""The door of the server, an ASGI layer: key, host, size and time of a request are looked at before anything else is.

A body is read here, up to its limit and within its time, so that a huge or a slow one never reaches the routes. Nobody
without the key gets that far. The log gets method, path, status and seconds, never a header or a text.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from preftune.api.metrics import Metrics

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = {"/health"}  # without a key
KNOWN = {"/health", "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/score"}


@dataclass(frozen=True)
class Rules:
    """What may come in.

    key: every request but /health must bring it; None: there is none.
    hosts: names that a request may ask for, None = any. Of a server on loopback without a key these are its own: a web
        page whose name is turned to 127.0.0.1 asks for another one.
    body_bytes: of a request.
    patience: seconds for a body to come in, and for a client to take a piece of an answer.
    """

    key: str | None = None
    hosts: frozenset[str] | None = None
    body_bytes: int = 4 * 2**20
    patience: float = 30.0


class Refusal(Exception):
    """A status, a line, OpenAI's words for them, and headers."""

    def __init__(self, status: int, line: str, code: str | None = None, **headers: str) -> None:
        super().__init__(line)
        self.status, self.code, self.headers = status, code, headers

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.code)


def error_body(status: int, line: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": line, "type": kind, "param": param, "code": code}}


class Door:
    """In front of `app`."""

    def __init__(self, app: App, rules: Rules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.rules.patience)
        started = time.monotonic()
        try:
            self._look_at(scope)
            body = await self._read(scope, receive)
            if body is not None:
                await self.app(scope, _replay(body, receive), answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            log.warning("%s: the client takes no more of its answer; it is left.", scope["path"])
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(Refusal(500, "The server made a mistake; its log says more."))
        finally:
            self._note(scope, answer.status, time.monotonic() - started)

    def _look_at(self, scope: MutableMapping[str, Any]) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.rules.hosts is not None and _hostname(host) not in self.rules.hosts:
            raise Refusal(403, f"This server answers to {', '.join(sorted(self.rules.hosts))} alone.")
        if self.rules.key is None or scope["path"] in OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.rules.key.encode())
        if not (right and scheme.lower() == b"bearer"):
            said = "Incorrect API key." if given else "An API key is needed: 'Authorization: Bearer KEY'."
            raise Refusal(401, said, "invalid_api_key", **{"www-authenticate": "Bearer"})

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """The body; None where the client has left."""
        limit = self.rules.body_bytes
        too_large = Refusal(413, f"The body is larger than {limit} bytes, the limit of this server.", "body_too_large")
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.rules.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            line = f"The body did not come in within {self.rules.patience:g} seconds."
            raise Refusal(408, line, "timeout", connection="close") from None

    def _note(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in KNOWN else "other"
        self.metrics.requests[path, status] += 1
        if path.startswith("/v1/"):
            self.metrics.request_seconds.add(seconds)
            log.info("%s %s %s %.2f s", scope["method"], path, status or "client left", seconds)


class _Answer:
    """What has been sent; `status` is 0 before anything was."""

    def __init__(self, send: Send, patience: float) -> None:
        self._send, self.patience, self.status = send, patience, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        async with asyncio.timeout(self.patience):
            await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Nothing where an answer has begun: the server closes the connection in the middle of it."""
        if self.status:
            return
        body = json.dumps(refusal.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then what comes after it: that the client leaves."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return parts.pop() if parts else await receive()

    return again


def _hostname(host: str) -> str:
    """Without the port."""
    return host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0].lower()
