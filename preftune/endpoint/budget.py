"""What requests cost, before they are sent and while they are.

A request is let through when what has been spent, what the requests under way can cost at most, and what it can cost
itself stay within the limit. Until the server has counted, a byte of text is taken for a token (no tokenizer makes
more). A request whose reply was lost counts as the most it can have cost.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from preftune.endpoint.chat import ChatReply, ChatRequest
from preftune.errors import PreftuneError, RecipeError

BYTES_PER_TOKEN = 4  # of an estimate, English text


class BudgetSpentError(PreftuneError):
    """The next request might cost more than is left."""

    exit_code = 1


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Estimate:
    """Tokens of all requests, about; completion tokens at most. `cost` is None without prices."""

    requests: int
    prompt_tokens: int
    completion_tokens: int | None
    cost: float | None

    def __str__(self) -> str:
        most = "any number of" if self.completion_tokens is None else f"at most {self.completion_tokens:,}"
        cost = "" if self.cost is None else f"; about {self.cost:.2f} at the prices given, if all of these are written"
        return f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens read, {most} written{cost}"


def estimate(requests: Iterable[ChatRequest], prices: Prices | None = None) -> Estimate:
    """What asking these can take, before the first is sent."""
    count = read = 0
    written: int | None = 0
    for request in requests:
        count += 1
        read += _tokens(request, BYTES_PER_TOKEN)
        limit = request.max_tokens
        written = None if limit is None or written is None else written + limit * request.n
    cost = None if prices is None or written is None else prices.of(read, written)
    return Estimate(count, read, written, cost)


class Budget:
    """A limit on what an endpoint's requests cost together; threads share one.

    Args:
        limit: in the currency of the prices.
        spent: what was spent before.
    """

    def __init__(self, limit: float, prices: Prices, spent: float = 0.0) -> None:
        self.limit, self.prices, self.spent = limit, prices, spent
        self._reserved, self._under_way = 0.0, 0
        self._changed = threading.Condition()

    def most(self, request: ChatRequest) -> float:
        """What a request can cost at most.

        Raises:
            RecipeError: it does not say how many tokens may be written.
        """
        if request.max_tokens is None:
            raise RecipeError("A budget needs a limit on the tokens of an answer. Set the highest number of tokens.")
        return self.prices.of(_tokens(request, 1), request.max_tokens * request.n)

    def reserve(self, request: ChatRequest) -> float:
        """Wait until there is room for a request, and set aside what it can cost.

        Raises:
            BudgetSpentError: there is none, and no request under way could make some.
        """
        most = self.most(request)
        with self._changed:
            while self.spent + self._reserved + most > self.limit:
                if not self._under_way:
                    raise BudgetSpentError(
                        f"The budget is spent: {self.spent:.4f} of {self.limit:g}, and the next request can cost "
                        f"{most:.4f}. What came is kept; raise the budget and start again to go on."
                    )
                self._changed.wait()
            self._reserved += most
            self._under_way += 1
        return most

    def settle(self, reserved: float, reply: ChatReply | None, *, lost: bool = False) -> None:
        """Count what a request did cost: nothing where it was refused, the most where its reply was `lost`."""
        cost = self._cost(reply, reserved) if reply is not None else reserved if lost else 0.0
        with self._changed:
            self.spent += cost
            self._under_way -= 1
            # sums of floats leave a rest, which is worth nothing when no request is under way
            self._reserved = max(self._reserved - reserved, 0.0) if self._under_way else 0.0
            self._changed.notify_all()

    def count(self, request: ChatRequest, reply: ChatReply) -> None:
        """Count a reply that came before, in another process, say."""
        cost = self._cost(reply, self.most(request))
        with self._changed:
            self.spent += cost

    def _cost(self, reply: ChatReply, most: float) -> float:
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return most
        return self.prices.of(reply.prompt_tokens, reply.completion_tokens)


def _tokens(request: ChatRequest, bytes_each: int) -> int:
    """Of what is read, so many bytes of text being one; token ids are counted."""
    if request.prompt is not None and not isinstance(request.prompt, str):
        return len(request.prompt)
    said = json.dumps(list(map(dict, request.messages))) if request.prompt is None else request.prompt
    return len(said.encode("utf-8", "surrogatepass")) // bytes_each
