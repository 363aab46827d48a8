"""What is asked of an endpoint and what comes back, in the form of OpenAI's chat and text completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]


class MalformedReplyError(Exception):
    """A server answered with something that is no completion; the message is one line."""


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Args:
        key: the caller's name for it, unique among the requests that are asked together.
        messages: a conversation, for /chat/completions; or
        prompt: token ids (or text) that are continued as they stand, for /completions.
        temperature, top_p, max_tokens, seed, n, stop, logprobs, top_logprobs: as there; None is left out.
        more: further fields of the request's body.
        variant: tells apart two requests that are the same, so that a cache does not answer the second with the first.
    """

    key: str
    messages: Sequence[Message] = ()
    prompt: Sequence[int] | str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    logprobs: bool | None = None
    top_logprobs: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    variant: int = 0

    @property
    def path(self) -> str:
        return "/chat/completions" if self.prompt is None else "/completions"

    def body(self, model: str) -> dict[str, Any]:
        """The JSON object that is sent."""
        asked: dict[str, Any] = {"messages": [dict(message) for message in self.messages]}
        if self.prompt is not None:
            asked = {"prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt)}
        settings = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "n": self.n if self.n > 1 else None,
            "stop": list(self.stop) or None,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
        }
        return {"model": model, **asked, **{k: v for k, v in settings.items() if v is not None}, **self.more}

    def digest(self, model: str) -> str:
        """A hash of all that decides the reply."""
        said = json.dumps([self.path, self.body(model), self.variant], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Choice:
    """One answer: its text, why it ended (stop, length, ...), and its log-probs as the server gave them."""

    text: str
    finish: str | None
    logprobs: Any = None


@dataclass(frozen=True)
class ChatReply:
    """The answers to a request, `n` of them; tokens as the server counted them, None where it did not."""

    choices: tuple[Choice, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str | None = None  # what the server calls the model that answered

    @property
    def text(self) -> str:
        return self.choices[0].text


@dataclass(frozen=True)
class Failure:
    """A request that got no reply: the last reason, and how often it was tried. `refused`: a server has answered, and
    will not take this request."""

    reason: str
    tries: int
    refused: bool = False


def parse_reply(data: object, n: int) -> ChatReply:
    """Read a completion.

    Raises:
        MalformedReplyError: it has not the `n` choices, or a choice has no text.
    """
    if isinstance(data, dict) and "error" in data and not data.get("choices"):
        raise MalformedReplyError(f"the server reports an error: {_short(data['error'])}")
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or len(choices) != n:
        found = f"{len(choices)} of them" if isinstance(choices, list) else _short(data)
        raise MalformedReplyError(f"expected a completion with {n} choices, found {found}")
    usage = data.get("usage") if isinstance(data, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    ordered = sorted(choices, key=_index)
    model = data.get("model") if isinstance(data, dict) else None
    return ChatReply(
        choices=tuple(_choice(choice) for choice in ordered),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        model=model if isinstance(model, str) else None,
    )


def _index(choice: object) -> int:
    index = choice.get("index") if isinstance(choice, dict) else None
    return index if isinstance(index, int) else 0


def _choice(choice: object) -> Choice:
    if not isinstance(choice, dict):
        raise MalformedReplyError(f"expected a choice to be an object, found {_short(choice)}")
    message, finish = choice.get("message"), choice.get("finish_reason")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and isinstance(finish, str) and (isinstance(message, dict) or "text" in choice):
        text = ""  # it ended before it said anything: all tokens went into thinking, a filter, a tool call
    if not isinstance(text, str):
        raise MalformedReplyError(f"expected a choice with a text, found {_short(choice)}")
    return Choice(text, finish if isinstance(finish, str) else None, choice.get("logprobs"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
