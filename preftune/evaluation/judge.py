"""Who judges: an OpenAI-compatible endpoint, or a local reward model under a name of its own.

Replies of an endpoint are kept in a file as they come, so that a judging that was stopped, by a kill, a budget or a
server that failed, goes on where it was. A file of judgments is written when all of them are there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.endpoint import (
    Budget,
    ChatReply,
    ChatRequest,
    Endpoint,
    EndpointError,
    Failure,
    Prices,
    ReplyCache,
    estimate,
)
from preftune.endpoint.client import SILENT
from preftune.errors import RecipeError

log = logging.getLogger(__name__)

OFFICIAL_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
OFFICIAL_JUDGE = "gpt-4-1106-preview"


def open_endpoint(
    urls: Sequence[str],
    judge: str | None,
    output: str | Path,
    *,
    prices: Sequence[float] | None = None,
    budget: float | None = None,
    **settings: Any,
) -> Endpoint:
    """The judge's endpoint, which keeps its replies beside `output`.

    Args:
        judge: its name there.
        prices: of a million tokens read and written.
        budget: what this judging may cost at these prices.
        settings: of `Endpoint`.

    Raises:
        RecipeError: a part is missing or wrong.
        DataError: replies cannot be kept there.
    """
    if not judge:
        raise RecipeError("--endpoint needs --judge, the judge's name there.")
    if budget and not prices:
        raise RecipeError("--budget needs --prices, of a million tokens read and written.")
    cap = Budget(budget, Prices(*prices)) if budget and prices else None
    cache = ReplyCache(f"{output}.replies.jsonl")
    return Endpoint(urls, judge, cache=cache, budget=cap, stop_after=SILENT, **settings)


def ask_all(
    endpoint: Endpoint,
    requests: Sequence[ChatRequest],
    prices: Sequence[float] | None = None,
    *,
    needs_one: bool = True,
) -> dict[str, ChatReply]:
    """Key -> reply, of every request that the judge does not refuse; says first what they can cost.

    Asked again, it would refuse again: those that it refuses are left out, and counted.

    Args:
        prices: of a million tokens read and written.
        needs_one: a judge that refuses all of them is no judge of them.

    Raises:
        EndpointError: some got no reply, or all were refused. What came is kept where the endpoint has a cache.
        BudgetSpentError: the budget does not reach; the same holds.
    """
    missing = [request for request in requests if not _kept(endpoint, request)]
    kept = len(requests) - len(missing)
    expected = estimate(missing, Prices(*prices) if prices else None)
    log.info("%s: %s%s", endpoint.model, expected, f"; {kept} are there already" if kept else "")
    replies: dict[str, ChatReply] = {}
    failures: list[tuple[ChatRequest, Failure]] = []
    refusals: list[tuple[ChatRequest, Failure]] = []
    for request, outcome in endpoint.ask(requests):
        if isinstance(outcome, Failure):
            (refusals if outcome.refused else failures).append((request, outcome))
        else:
            replies[request.key] = outcome
    if failures:
        request, failure = failures[0]
        raise EndpointError(
            f"{endpoint.model}: {len(failures)} of {len(requests)} requests got no reply; {request.key}: "
            f"{failure.reason} ({failure.tries} tries). What came is kept; start again to go on."
        )
    if refusals:
        request, failure = refusals[0]
        if needs_one and not replies:
            raise EndpointError(f"{endpoint.model}: refuses all of {len(requests)} requests; {request.key}: "
                                f"{failure.reason}. Take a judge that takes such requests.")  # fmt: skip
        log.warning("%s: %d of %d requests are refused and have no verdict; %s: %s",
                    endpoint.model, len(refusals), len(requests), request.key, failure.reason)  # fmt: skip
    return replies


def _kept(endpoint: Endpoint, request: ChatRequest) -> bool:
    """Whether the reply is there from before; what it cost counts towards the budget, which so holds over restarts."""
    reply = None if endpoint.cache is None else endpoint.cache.get(request, endpoint.model)
    if reply is not None and endpoint.budget is not None:
        endpoint.budget.count(request, reply)
    return reply is not None
