"""Who may ask, and what a browser may do with the answer: an ASGI layer around the whole page.

Host       an IP address, localhost, or a name that was given: a page elsewhere cannot point its own name at us
Origin     of what changes something: this page; together with the token that stands in the page alone
login      HTTP Basic, compared in constant time, where one was asked for
answers    nothing from elsewhere runs, is framed or is guessed to be another type
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-preftune-token"
READS = ("GET", "HEAD")
LARGEST = 1 << 20  # bytes of a request
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Args:
    app: the page.
    token: what a request that changes something must bring along.
    names: host names that the page may be asked for by, beside localhost and addresses.
    login: `user:password`, or None.
    """

    def __init__(self, app: ASGIApp, *, token: str, names: frozenset[str], login: str | None) -> None:
        self.app, self.token, self.names, self.login = app, token, names, login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = self._refusal(scope["method"], Headers(scope=scope))

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE)
            await send(message)

        return await (refusal or self.app)(scope, receive, send_safely)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host = headers.getlist("host")
        if len(host) != 1 or not self._is_ours(host[0]):
            return refuse(421, "This page is not known by that name. Start it with --allow-host NAME.")
        if self.login is not None and not self._knows(headers.get("authorization", "")):
            ask = {"www-authenticate": 'Basic realm="preftune", charset="UTF-8"'}
            return refuse(401, "User and password are needed.", ask)
        if method in READS:
            return None
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host[0]:
            return refuse(403, "This request comes from another page.")
        if not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self.token.encode()):
            return refuse(403, "The page is older than the server. Load it again.")
        return _wrong_size(headers.get("content-length", ""))

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names or name == "localhost":
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _knows(self, header: str) -> bool:
        kind, _, encoded = header.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        assert self.login is not None
        return kind.lower() == "basic" and secrets.compare_digest(given, self.login.encode())


class Json(JSONResponse):
    """ASCII: a file or a log may hold half a surrogate pair, which UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def refuse(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return Json({"error": reason}, status, headers)


def _wrong_size(length: str) -> Response | None:
    if not (length.isascii() and length.isdecimal()):
        return refuse(411, "The request must say its length.")
    return refuse(413, f"The request is larger than {LARGEST} bytes.") if int(length) > LARGEST else None
