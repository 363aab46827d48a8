"""A client for OpenAI-compatible endpoints: many requests to one server or several, and every reply or its failure."""

from __future__ import annotations

from preftune.endpoint.budget import Budget, BudgetSpentError, Prices, estimate
from preftune.endpoint.cache import ReplyCache
from preftune.endpoint.chat import ChatReply, ChatRequest, Choice, Failure
from preftune.endpoint.client import Endpoint, EndpointError

__all__ = [
    "Budget",
    "BudgetSpentError",
    "ChatReply",
    "ChatRequest",
    "Choice",
    "Endpoint",
    "EndpointError",
    "Failure",
    "Prices",
    "ReplyCache",
    "estimate",
]
