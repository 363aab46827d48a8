"""What the engine is asked, and what it answers: values without tensors."""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass, field
from typing import Literal

from preftune.errors import ModelError

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Args:
        max_new_tokens: of one answer, at least 1; the model's context may leave less.
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens whose probabilities first reach this sum, in (0, 1].
        top_k: sample from that many likeliest tokens; 0 = all. Applied before `top_p`, as in transformers.
        ends: token ids that end an answer.
        logprobs: give the log-prob of every token under the model itself, temperature 1 and no cut (nats).
        top_logprobs: give so many of the likeliest tokens at every place too, with theirs.

    Raises:
        ModelError: a number is out of its range.
    """

    max_new_tokens: int = 4096
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    ends: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name!r} is {value!r}, expected {expected}"
            for name, value, good, expected in (
                ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
                ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a number of at least 0"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("top_k", self.top_k, self.top_k >= 0, "at least 0 (0 = no limit)"),
                ("top_logprobs", self.top_logprobs, self.top_logprobs >= 0, "at least 0"),
            )
            if not good
        ]
        if wrong:
            raise ModelError(f"Sampling: {'; '.join(wrong)}.")


@dataclass(frozen=True)
class Request:
    """A prompt and one seed for each answer to it.

    An answer is a function of the prompt's ids, its seed and `sampling` alone; equal seeds give equal answers.
    """

    key: Hashable
    prompt: list[int]
    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = Sampling()


def check_request(request: Request, taken: Container[Hashable], context: int | None) -> None:
    """Raise a ModelError where a key is taken, a prompt is empty or fills the context, or no answer is wanted."""
    if request.key in taken:
        raise ModelError(f"request {request.key!r}: a request with this key is not finished yet. Give another key.")
    if not request.prompt or not request.seeds:
        raise ModelError(f"request {request.key!r}: expected a prompt of at least one token and at least one seed.")
    if context is not None and len(request.prompt) >= context:
        raise ModelError(
            f"request {request.key!r}: the prompt has {len(request.prompt)} tokens, the model reads {context}. "
            "Shorten it."
        )


@dataclass
class Answer:
    """Token ids, the ending one included; `logprobs` (nats) are one a token where they were asked for, else empty."""

    ids: list[int] = field(default_factory=list)
    finish: Finish = "length"
    logprobs: list[float] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.finish == "stop"


@dataclass(frozen=True)
class Event:
    """One more token of answer number `index` to request `key`; `answer` is the whole of it with its last token.

    `top` are the likeliest tokens at its place, (id, log-prob in nats), where they were asked for.
    """

    key: Hashable
    index: int
    token: int
    logprob: float | None = None
    answer: Answer | None = None
    top: tuple[tuple[int, float], ...] = ()
