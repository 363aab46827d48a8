"""Models that answer questions of the page: loaded when they are first asked, each answering one question at a time.

An answer depends on the conversation, the seed and the sampling alone, whatever else is asked at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preftune.data.chat import ChatFormat
from preftune.generation import Engine, Request
from preftune.generation import Sampling as Drawing
from preftune.model.ends import ending_ids
from preftune.model.place import find_model
from preftune.serve.chat import HALF, Chat, Sampling, open_chat
from preftune.types import Message

NO_SYSTEM = "-"  # as /system has it in the terminal


@dataclass(frozen=True)
class Piece:
    """More text of an answer, or its end: `finish` is stop, length or cancelled; `prompt` the messages it answers."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    finish: str = ""
    prompt: tuple[Message, ...] = ()


@dataclass
class Voice:
    """A loaded model. `lock` is held by whoever it answers."""

    chat: Chat
    engine: Engine
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self, turns: Sequence[Message], system: str, sampling: Sampling, stopped: threading.Event
    ) -> Iterator[Piece]:
        """The answer to a conversation, piece by piece.

        Raises:
            ModelError: the question does not fit into the model's context.
            DataError: the chat template refuses the conversation.
        """
        trained = self.chat.system
        said = {"": trained, NO_SYSTEM: None}.get(system, system)
        chat = replace(self.chat, system=said, sampling=sampling, turns=list(turns))
        ids, room = chat.fitting_prompt()
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in chat.messages())
        yield Piece(prompt_tokens=len(ids), prompt=prompt)
        drawing = Drawing(
            max_new_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            ends=ending_ids(chat.model, chat.format),
        )
        with self.lock:
            yield from self._write(Request(0, ids, (sampling.seed or 0,), drawing), stopped)

    def _write(self, request: Request, stopped: threading.Event) -> Iterator[Piece]:
        ids, shown, finish = list[int](), "", "cancelled"
        self.engine.submit(request)
        try:
            while self.engine.busy and not stopped.is_set():
                for event in self.engine.step():
                    ids.append(event.token)
                    if event.answer is not None:
                        ids, finish = event.answer.ids, event.answer.finish
                text = decode(self.chat.format, ids)
                if text.startswith(shown) and not text.endswith(HALF):
                    yield Piece(text[len(shown) :], len(ids))
                    shown = text
        finally:
            self.engine.cancel(request.key)
        text = decode(self.chat.format, ids)
        yield Piece(text[len(shown) :] if text.startswith(shown) else "", len(ids), finish=finish)


@dataclass
class Voices:
    """The models that are loaded, at most `most`; the one that was asked longest ago makes room."""

    most: int = 2
    allow_pickle: bool = False
    trust_remote_code: bool = False
    loaded: dict[tuple[str, int], Voice] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> Voice:
        """
        Raises:
            ModelError: it cannot be loaded.
        """
        with self.lock:
            key = (name, _changed(name))
            for other in [other for other in self.loaded if other[0] == name and other != key]:
                del self.loaded[other]  # it was trained again
            voice = self.loaded.pop(key, None) or self._load(name)
            self.loaded[key] = voice
            return voice

    def _load(self, name: str) -> Voice:
        while len(self.loaded) >= self.most:
            self.loaded.pop(next(iter(self.loaded)))
        chat = open_chat(name, allow_pickle=self.allow_pickle, trust_remote_code=self.trust_remote_code)
        return Voice(chat, Engine(chat.model, slots=1))


def _changed(name: str) -> int:
    """When the weights of a folder were written last; 0 of a hub name."""
    return max((path.stat().st_mtime_ns for path in Path(find_model(name)).glob("*.safetensors")), default=0)


def decode(form: ChatFormat, ids: Sequence[int]) -> str:
    return str(form.tokenizer.decode(ids, skip_special_tokens=True))
