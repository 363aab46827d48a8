"""Many requests to the servers of an endpoint at once, each tried again until it has a reply or its tries are used up.

    endpoint = Endpoint(["http://gpu-1:8000/v1", "http://gpu-2:8000/v1"], "my-model")
    for request, outcome in endpoint.ask(requests):     # as they are done
        ...                                             # a ChatReply or a Failure

Tried again: no connection, one that is cut, silence beyond the time limit, 408, 409, 425, 429, 5xx, and a reply that is
no completion. A 429 or 503 lets the server rest for as long as its Retry-After says. Not tried again: any other
4xx, which is about the request; a 401, 403 or 404 is about the server, which is then asked no more.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from preftune.endpoint.address import SHORTEST_IN_ANSWERS, check_address, hide_key
from preftune.endpoint.budget import Budget
from preftune.endpoint.cache import ReplyCache
from preftune.endpoint.chat import ChatReply, ChatRequest, Failure, MalformedReplyError, parse_reply
from preftune.endpoint.servers import Server, Servers
from preftune.errors import PreftuneError, RecipeError

log = logging.getLogger(__name__)

Outcome = ChatReply | Failure
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
OF_THE_SERVER = {
    401: "it wants another key. Put it into the environment variable {key_from}",
    402: "its account has no credit left. Fill it up and start again",
    403: "it refuses the key in {key_from}",
    404: "there is no such path or model. An address ends before /chat/completions, mostly in /v1",
}
SILENT = 16  # requests in a row, for those who give a job up when nobody answers
LARGEST_REPLY = 64 * 2**20  # bytes
BUSY = (429, 503)


class EndpointError(PreftuneError):
    """No server of the endpoint can be asked."""

    exit_code = 1


@dataclass
class _TryAgainError(Exception):
    """What went wrong; `rest` of the server in seconds (`Servers.failed`); `sent`: it may have been worked on."""

    reason: str
    rest: float | None
    sent: bool


@dataclass
class _RefusedError(Exception):
    """The server will not take this request, whoever asks again."""

    reason: str


class _ServerRefusesError(Exception):
    """The server takes no request of ours; the message says why."""


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        urls: addresses up to /v1, one or several that serve the same model.
        model: its name there.
        key_from: the environment variable that holds the key; one that is not set sends none.
        concurrency: requests under way at once, over all servers.
        tries: of a request, the first included.
        patience: seconds that the second try waits at most; twice as long each further time, up to a minute.
        timeout: seconds from sending a request to the end of its reply.
        cache: replies that are there already are not asked for, new ones are kept.
        budget: what all requests may cost.
        stop_after: `ask` stops when so many requests in a row were given up without a word from a server, or all of a
            call were; None gives each its failure.

    Raises:
        RecipeError: an address is none or holds a password, or a number is too small.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str,
        *,
        key_from: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        tries: int = 8,
        patience: float = 1.0,
        timeout: float = 600.0,
        cache: ReplyCache | None = None,
        budget: Budget | None = None,
        stop_after: int | None = None,
    ) -> None:
        addresses = [check_address(address) for address in ([urls] if isinstance(urls, str) else urls)]
        for name, value in {"urls": len(addresses), "concurrency": concurrency, "tries": tries}.items():
            if value < 1:
                raise RecipeError(f"'{name}' of an endpoint must be at least 1, found {value}.")
        self.model, self.key_from, self.concurrency = model, key_from, concurrency
        self.tries, self.patience, self.timeout = tries, patience, timeout
        self.cache, self.budget, self.stop_after = cache, budget, stop_after
        self.servers = Servers(addresses)

    def ask(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[ChatRequest, Outcome]]:
        """Every request with its reply or failure, in the order in which they are done.

        Requests are drawn as there is room for them, so they may come from a generator of any length. With a cache,
        those that ask the same as one under way wait for its outcome.

        Raises:
            EndpointError: no server is left to ask, none answers (`stop_after`), or the key, a proxy or certificates
                can be none. Replies that came before have been given.
            BudgetSpentError: the same of a budget that is used up.
        """
        self._key()  # one that can be none stops before anything is sent
        call = _Call(self)
        try:
            yield from call.run(iter(requests))
        finally:
            call.stop.set()

    def ask_in_order(self, requests: Iterable[ChatRequest]) -> list[Outcome]:
        """The same, all of them, in the order of the requests."""
        listed = list(requests)
        places = {id(request): place for place, request in enumerate(listed)}
        found: list[Any] = [None] * len(listed)
        for request, outcome in self.ask(listed):
            found[places[id(request)]] = outcome
        return found

    def close(self) -> None:
        """Let others have its cache."""
        if self.cache is not None:
            self.cache.close()

    def send(self, client: httpx.Client, server: Server, request: ChatRequest) -> ChatReply:
        """One try."""
        ends, key = time.monotonic() + self.timeout, self._key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        sent = False
        try:
            # escaped to ASCII: half a surrogate pair, which a text may hold, has no bytes in UTF-8
            body = json.dumps(request.body(self.model)).encode("ascii")
            with client.stream("POST", server.url + request.path, content=body, headers=headers) as response:
                sent = True
                data = _read(response, ends)
                status, rest = response.status_code, _retry_after(response.headers.get("retry-after"))
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            raise _TryAgainError("no connection in time", None, False) from None
        except httpx.TimeoutException:
            raise _TryAgainError(f"no reply within {self.timeout:g} s", None, True) from None
        except (httpx.HTTPError, OSError) as error:
            said = hide_key(str(error).encode(), key).decode() or type(error).__name__
            unsent = isinstance(error, httpx.ConnectError) and not sent
            raise _TryAgainError(f"the connection failed ({said})", None, not unsent) from None
        if status == 200:
            return _parsed(data, request.n, key)
        reason = f"status {status}: {_reason(hide_key(data, key))}"
        if status in OF_THE_SERVER:
            raise _ServerRefusesError(f"{reason}; {OF_THE_SERVER[status].format(key_from=self.key_from)}")
        if status in PASSING or status >= 500:
            raise _TryAgainError(reason, rest, status not in BUSY)
        raise _RefusedError(reason)

    def _key(self) -> str:
        """ "" where there is none. Files that keys are read from end in a newline, which is no part of them."""
        key = os.environ.get(self.key_from, "").strip()
        if not key.isascii() or not key.isprintable():
            raise EndpointError(
                f"The environment variable {self.key_from} holds a character that no key has. Set it to the key alone."
            )
        return key


class _Call:
    """One `ask`: daemon threads that send, and the queues between them and the caller."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stop = threading.Event()
        self.asked: queue.Queue[ChatRequest] = queue.Queue()
        self.done: queue.Queue[tuple[ChatRequest, Outcome | BaseException]] = queue.Queue()
        self.threads = 0
        self.trust: ssl.SSLContext | None = None  # certificates, read once
        self.answered = False  # any request
        self.silent: list[Failure] = []  # in a row, of requests that no server said a word to
        self.same: dict[str, list[ChatRequest]] = {}  # by digest, those that wait for the one under way

    def run(self, requests: Iterator[ChatRequest]) -> Iterator[tuple[ChatRequest, Outcome]]:
        under_way, trouble = 0, None
        while True:
            while trouble is None and under_way < self.endpoint.concurrency:
                request = next(requests, None)
                if request is None:
                    break
                cache = self.endpoint.cache
                kept = None if cache is None else cache.get(request, self.endpoint.model)
                if kept is not None:
                    self.answered = True
                    yield request, kept
                    continue
                if cache is not None and not self._first_of_its_kind(request):
                    continue
                self._start_one(under_way)
                self.asked.put(request)
                under_way += 1
            if not under_way:
                if trouble is not None:
                    raise trouble
                if self.silent and not self.answered:
                    self._stop_after(len(self.silent))
                return
            request, outcome = self.done.get()
            under_way -= 1
            if isinstance(outcome, BaseException):
                trouble = trouble or outcome
            else:
                self._hear(outcome)
                yield request, outcome
                for other in self.same.pop(request.digest(self.endpoint.model), []):
                    yield other, outcome

    def _hear(self, outcome: Outcome) -> None:
        if isinstance(outcome, ChatReply) or outcome.refused:
            self.answered, self.silent = True, []
            return
        self.silent.append(outcome)
        if self.endpoint.stop_after is not None:
            self._stop_after(self.endpoint.stop_after)

    def _stop_after(self, most: int) -> None:
        """Where so many requests in a row had no answer."""
        if self.endpoint.stop_after is None or len(self.silent) < most:
            return
        last = self.silent[-1]
        raise EndpointError(
            f"No server has answered {len(self.silent)} requests in a row; the last: {last.reason} ({last.tries} "
            "tries). What came is kept; start again when one answers, to go on."
        )

    def _first_of_its_kind(self, request: ChatRequest) -> bool:
        """False where the same is under way; the request is then answered with that one."""
        digest = request.digest(self.endpoint.model)
        if digest in self.same:
            self.same[digest].append(request)
            return False
        self.same[digest] = []
        return True

    def _start_one(self, under_way: int) -> None:
        """Another thread where all there are have work. Daemons: a stop does not wait for a silent server."""
        if under_way >= self.threads:
            client = self._client()  # here, not in the thread: what cannot be made is the caller's to hear
            threading.Thread(target=self._work, args=(client,), daemon=True, name="endpoint").start()
            self.threads += 1

    def _client(self) -> httpx.Client:
        limit = httpx.Timeout(self.endpoint.timeout, connect=min(10.0, self.endpoint.timeout))
        try:
            self.trust = self.trust or httpx.create_ssl_context()
            return httpx.Client(timeout=limit, verify=self.trust)
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise EndpointError(
                f"No connection can be made with the proxy and certificates of the environment ({error}). Mend or "
                "unset ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE or SSL_CERT_DIR."
            ) from None

    def _work(self, client: httpx.Client) -> None:
        with client:
            while not self.stop.is_set():
                try:
                    request = self.asked.get(timeout=0.2)
                except queue.Empty:
                    continue
                try:
                    outcome: Outcome | BaseException = self._answer(client, request)
                except Exception as error:  # handed to the caller's thread
                    outcome = error
                self.done.put((request, outcome))

    def _answer(self, client: httpx.Client, request: ChatRequest) -> Outcome:
        endpoint, reason = self.endpoint, "stopped"
        for number in range(1, endpoint.tries + 1):
            server = endpoint.servers.take(self.stop)
            if server is None:
                if self.stop.is_set():
                    return Failure(reason, number)
                raise EndpointError(f"No server of the endpoint can be asked. {endpoint.servers.reasons}.")
            try:
                return self._try(client, server, request)
            except _TryAgainError as error:
                reason = error.reason
            except _RefusedError as error:
                return Failure(error.reason, number, refused=True)
            except _ServerRefusesError as error:
                reason = str(error)
                continue  # another server is asked at once
            if number < endpoint.tries:
                log.debug("%s: %s; try %d of %d", request.key, reason, number, endpoint.tries)
                self.stop.wait(min(endpoint.patience * 2 ** (number - 1), 60.0) * (0.5 + random.random() / 2))
        return Failure(reason, endpoint.tries)

    def _try(self, client: httpx.Client, server: Server, request: ChatRequest) -> ChatReply:
        endpoint = self.endpoint
        reserved = self._reserve(server, request)
        reply, lost, started = None, False, time.monotonic()
        try:
            reply = endpoint.send(client, server, request)
        except _TryAgainError as error:
            lost = error.sent
            endpoint.servers.failed(server, error.rest, time.monotonic() - started)
            raise
        except _ServerRefusesError as error:
            endpoint.servers.drop(server, str(error))
            raise
        except BaseException:  # the request was refused, or something is wrong here
            endpoint.servers.returned(server)
            raise
        finally:
            if endpoint.budget is not None:
                endpoint.budget.settle(reserved, reply, lost=lost)
        endpoint.servers.answered(server, time.monotonic() - started)
        if endpoint.cache is not None:
            endpoint.cache.put(request, endpoint.model, reply)
        return reply

    def _reserve(self, server: Server, request: ChatRequest) -> float:
        if self.endpoint.budget is None:
            return 0.0
        try:
            return self.endpoint.budget.reserve(request)
        except BaseException:
            self.endpoint.servers.returned(server)
            raise


def _parsed(data: bytes, n: int, key: str) -> ChatReply:
    """A completion; one that says our key again has it no more."""
    try:
        return parse_reply(json.loads(hide_key(data, key, SHORTEST_IN_ANSWERS)), n)
    except (ValueError, RecursionError, MalformedReplyError):
        raise _TryAgainError(_why_none(hide_key(data, key), n), None, True) from None


def _why_none(data: bytes, n: int) -> str:
    try:
        parse_reply(json.loads(data), n)
    except MalformedReplyError as error:
        return str(error)
    except (ValueError, RecursionError):
        pass
    return f"expected JSON, found {' '.join(data[:80].decode('utf-8', 'replace').split())!r}"


def _read(response: httpx.Response, ends: float) -> bytes:
    """The whole reply; one that trickles in or never ends is given up."""
    parts, size = [], 0
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            raise httpx.ReadError(f"a reply of more than {LARGEST_REPLY >> 20} MiB")
        if time.monotonic() > ends:
            raise httpx.ReadTimeout("the reply trickles in")
    return b"".join(parts)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None where there is none."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _reason(data: bytes) -> str:
    """What the server says about it, in a line."""
    text = data[:2000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    line = " ".join(text.split())
    return (line if len(line) <= 160 else line[:157] + "...") or "no reason given"
