"""Tokens of the running batch into OpenAI's answers, whole or in pieces."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from preftune.api.batch import Batch, Ticket
from preftune.api.metrics import Metrics
from preftune.api.schema import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Finish,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from preftune.api.served import Served
from preftune.api.text import AnswerText, TokenTexts
from preftune.generation import Event, Sampling

LEAD = 8  # tokens of a prompt, more than any character has
LEAST = -9999.0  # what OpenAI writes for the log-prob of a token that cannot come; JSON has no -inf


@dataclass(frozen=True)
class Spoken:
    """A token with its log-prob (nats); start: where its text begins in the answer."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    start: int


@dataclass(frozen=True)
class Piece:
    """What came of choice `index`: text, its tokens where log-probs were asked for, and with the last one `finish`."""

    index: int
    text: str
    spoken: list[Spoken]
    finish: Finish | None


@dataclass
class _Choice:
    text: AnswerText
    waiting: list[Spoken] = field(default_factory=list)  # tokens whose text is not out yet
    finished: bool = False


class Answers:
    """The choices of one request, n to each of its prompts; `continues`: their text goes on from the prompt's.

    Raises:
        BusyError, StoppedError: the batch does not take them.
    """

    def __init__(
        self,
        batch: Batch,
        metrics: Metrics,
        served: Served,
        prompts: Sequence[list[int]],
        seeds: tuple[int, ...],
        sampling: Sampling,
        stops: Sequence[str] = (),
        continues: bool = False,
    ) -> None:
        self.batch, self.metrics, self.served, self.sampling = batch, metrics, served, sampling
        self.prompt_tokens, self.tokens = sum(map(len, prompts)), 0
        self.started, self.failed = time.monotonic(), False
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.tickets = [Ticket(served.name, ids, seeds, sampling, self._events) for ids in prompts]
        self._first = {id(ticket): number * len(seeds) for number, ticket in enumerate(self.tickets)}
        tokenizer = served.format.tokenizer
        lead = [ids[-LEAD:] if continues else () for ids in prompts for _ in seeds]
        self.choices = [_Choice(AnswerText(tokenizer, stops, before)) for before in lead]
        batch.submit(*self.tickets)

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=self.prompt_tokens + self.tokens,
        )

    async def pieces(self) -> AsyncIterator[Piece]:
        """As they come, until all choices are finished.

        Raises:
            PreftuneError: the model failed, or the server is going down.
        """
        left = len(self.choices)
        while left:
            event = await self._events.get()
            if isinstance(event, Exception):
                self.failed = True
                raise event
            piece = self._take(event)
            if piece is not None:
                left -= piece.finish is not None
                yield piece

    def leave(self) -> None:
        """Free what is still held; nothing after the last piece."""
        left = [ticket for ticket in self.tickets if ticket in self.batch.open]
        self.metrics.disconnects += bool(left) and not self.failed
        for ticket in left:
            self.batch.cancel(ticket)

    def _take(self, event: Event) -> Piece | None:
        ticket: Ticket = event.key  # type: ignore[assignment]
        index = self._first[id(ticket)] + event.index
        choice = self.choices[index]
        if choice.finished:
            return None
        self._count()
        ends = event.answer is not None and event.answer.finish == "stop"  # by a token that is no part of the text
        start = choice.text.length
        text = "" if ends else choice.text.add(event.token)
        if event.logprob is not None and not ends:
            choice.waiting.append(Spoken(event.token, event.logprob, event.top, start))
        if event.answer is not None:
            text += choice.text.close()
        elif choice.text.stopped:
            self.batch.end(ticket, event.index)
        choice.finished = event.answer is not None or choice.text.stopped
        finish: Finish | None = None
        if choice.finished:
            finish = "stop" if ends or choice.text.stopped else "length"
        spoken = self._told(choice)
        return Piece(index, text, spoken, finish) if text or spoken or finish else None

    def _count(self) -> None:
        if not self.tokens:
            self.metrics.first_token_seconds.add(time.monotonic() - self.started)
            self.metrics.prompt_tokens += self.prompt_tokens
        self.tokens += 1
        self.metrics.generated_tokens += 1

    def _told(self, choice: _Choice) -> list[Spoken]:
        """Tokens whose text is out; at the end all, but for those of a stop string."""
        everything = choice.finished and not choice.text.stopped
        told = [spoken for spoken in choice.waiting if everything or spoken.start < choice.text.said]
        del choice.waiting[: len(told)]
        return told


# --- OpenAI's objects


@dataclass
class Writer:
    """Writes the answers to one request: as one object, or as server-sent events."""

    answers: Answers
    chat: bool
    include_usage: bool = False
    id: str = field(default_factory=lambda: uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> ChatCompletion | Completion:
        texts = ["" for _ in self.answers.choices]
        spoken: list[list[Spoken]] = [[] for _ in texts]
        finishes: list[Finish] = ["length" for _ in texts]
        async for piece in self.answers.pieces():
            texts[piece.index] += piece.text
            spoken[piece.index] += piece.spoken
            finishes[piece.index] = piece.finish or "length"
        model, usage = self.answers.served.name, self.answers.usage
        if self.chat:
            chats = [
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content=text),
                    logprobs=self._chat_logprobs(own),
                    finish_reason=finish,
                )
                for index, (text, own, finish) in enumerate(zip(texts, spoken, finishes, strict=True))
            ]
            return ChatCompletion(
                id=f"chatcmpl-{self.id}", created=self.created, model=model, choices=chats, usage=usage
            )
        choices = [
            CompletionChoice(index=index, text=text, logprobs=self._logprobs(own), finish_reason=finish)
            for index, (text, own, finish) in enumerate(zip(texts, spoken, finishes, strict=True))
        ]
        return Completion(id=f"cmpl-{self.id}", created=self.created, model=model, choices=choices, usage=usage)

    async def events(self, error_of: Callable[[Exception], dict[str, Any]]) -> AsyncIterator[str]:
        """Server-sent events; an error is one of them, and the last."""
        try:
            if self.chat:
                for index in range(len(self.answers.choices)):
                    yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)
            async for piece in self.answers.pieces():
                for said in self._said(piece):
                    yield said
        except Exception as cause:
            yield _event(error_of(cause))
            return
        if self.include_usage:
            yield _event({**self._head(), "choices": [], "usage": self.answers.usage.model_dump()})
        yield "data: [DONE]\n\n"

    def _said(self, piece: Piece) -> list[str]:
        if not self.chat:
            logprobs = self._logprobs(piece.spoken)
            content = {"text": piece.text, "logprobs": logprobs and logprobs.model_dump()}
            return [self._chunk(piece.index, content, piece.finish)]
        chunks = []
        if piece.text or piece.spoken:
            logprobs = self._chat_logprobs(piece.spoken)
            content = {"delta": {"content": piece.text}, "logprobs": logprobs and logprobs.model_dump()}
            chunks.append(self._chunk(piece.index, content, None))
        if piece.finish:
            chunks.append(self._chunk(piece.index, {"delta": {}, "logprobs": None}, piece.finish))
        return chunks

    def _chunk(self, index: int, content: dict[str, Any], finish: Finish | None) -> str:
        return _event({**self._head(), "choices": [{"index": index, **content, "finish_reason": finish}]})

    def _head(self) -> dict[str, Any]:
        kind = ("chatcmpl-", "chat.completion.chunk") if self.chat else ("cmpl-", "text_completion")
        head = {"id": kind[0] + self.id, "object": kind[1], "created": self.created, "model": self.answers.served.name}
        return {**head, "usage": None} if self.include_usage else head

    def _chat_logprobs(self, spoken: list[Spoken]) -> ChatLogprobs | None:
        if not self.answers.sampling.logprobs:
            return None
        texts = self.answers.served.texts
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **_token(texts, own.token, own.logprob),
                    top_logprobs=[TopLogprob(**_token(texts, token, logprob)) for token, logprob in own.top],
                )
                for own in spoken
            ]
        )

    def _logprobs(self, spoken: list[Spoken]) -> CompletionLogprobs | None:
        sampling, texts = self.answers.sampling, self.answers.served.texts
        if not sampling.logprobs:
            return None
        tops = [{texts(token): max(logprob, LEAST) for token, logprob in own.top} for own in spoken]
        return CompletionLogprobs(
            tokens=[texts(own.token) for own in spoken],
            token_logprobs=[max(own.logprob, LEAST) for own in spoken],
            top_logprobs=tops if sampling.top_logprobs else None,
            text_offset=[own.start for own in spoken],
        )


def _token(texts: TokenTexts, token: int, logprob: float) -> dict[str, Any]:
    return {"token": texts(token), "bytes": texts.bytes_of(token), "logprob": max(logprob, LEAST)}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
