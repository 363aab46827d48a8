"""Continuous batching: requests come and go at any time, and a slot that falls free is taken at the next step.

    engine = Engine(model)
    engine.submit(Request("a", prompt_ids, seeds=(13, 21), sampling=Sampling(max_new_tokens=256, ends=(2,))))
    while engine.busy:
        for event in engine.step():         # one token of every answer that is being written
            ...                             # event.token as it comes, event.answer with its last token
    for key, index, answer in engine.run(requests): ...   # or: answers as they finish

The prompt of a request is computed once. An answer depends on its prompt, its seed and its sampling alone: greedy
answers are those of `model.generate`, one prompt at a time, but where two tokens are as likely as rounding can tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ModelError
from preftune.generation.choose import Draw, choose, random_numbers
from preftune.generation.decoder import Decoder, PlainDecoder, build_decoder
from preftune.generation.request import Answer, Event, Finish, Request, Sampling, check_request
from preftune.model.value_head import base_of

READ_TOKENS = 4096  # of prompts in one pass, padding included
AHEAD_TOKENS = 256  # prompts are read before there is a slot for them, until a pass is worth its while


@dataclass
class _Prompt:
    """A prompt that was read; `logits` (V,) of its answers' first token."""

    request: Request
    line: int
    logits: Tensor
    limit: int  # tokens of an answer
    unstarted: deque[int] = field(default_factory=deque)  # numbers of answers
    writing: int = 0


@dataclass
class _Row:
    """An answer that is being written; its line is its place in the engine's list."""

    prompt: _Prompt
    index: int
    draw: Draw
    answer: Answer = field(default_factory=Answer)

    @property
    def sampling(self) -> Sampling:
        return self.prompt.request.sampling


class Engine:
    """Answers of one model. Not for several threads: one calls `submit`, `step`, `cancel` and `end`.

    Args:
        model: a causal language model of transformers, or a PEFT model around one. Its evaluation mode and attention
            are put in place for a step and back after it.
        slots: answers that are written at the same time, at least 1.
    """

    def __init__(self, model: Any, *, slots: int = 32) -> None:
        if slots < 1:
            raise ModelError(f"'slots' is {slots}; expected at least 1.")
        self.model = base_of(model)
        self.slots = slots
        self.context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        with self._running():
            self._decoder: Decoder = build_decoder(self.model)
        self._queue: deque[Request] = deque()
        self._prompts: list[_Prompt] = []  # by line
        self._rows: list[_Row] = []  # by line
        self._keys: set[Hashable] = set()

    @property
    def shares_prompts(self) -> bool:
        """Whether all answers run in one pass; else one at a time, on the model's own cache."""
        return not isinstance(self._decoder, PlainDecoder)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._prompts)

    @property
    def load(self) -> tuple[int, int]:
        """Answers that are being written, and requests whose prompt was not read yet."""
        return len(self._rows), len(self._queue)

    def holds(self, key: Hashable) -> bool:
        """Whether a request is not finished yet."""
        return key in self._keys

    def submit(self, request: Request) -> None:
        """Take up a request; its answers begin as soon as there are slots, in the order of submission.

        Raises:
            ModelError: its key is in use, its prompt is empty or fills the model's context, or it wants no answer.
        """
        check_request(request, self._keys, self.context)
        self._keys.add(request.key)
        self._queue.append(request)

    def cancel(self, key: Hashable) -> bool:
        """Drop a request and free its slots; False where there is none with this key."""
        if key not in self._keys:
            return False
        self._keys.discard(key)
        self._queue = deque(request for request in self._queue if request.key != key)
        with self._running():
            for line in range(len(self._rows) - 1, -1, -1):
                if self._rows[line].prompt.request.key == key:
                    self._close(line, "cancelled")
            for prompt in [prompt for prompt in self._prompts if prompt.request.key == key]:
                prompt.unstarted.clear()
                self._close_prompt(prompt)
        return True

    def end(self, key: Hashable, index: int) -> bool:
        """End one answer where it is, and free its slot; False where it is not being written."""
        for line, row in enumerate(self._rows):
            if row.prompt.request.key == key and row.index == index:
                with self._running():
                    self._close(line, "cancelled")
                return True
        return False

    def step(self) -> list[Event]:
        """Fill free slots, then add a token to every answer that is being written."""
        events: list[Event] = []
        with self._running():
            started = self._start(events)
            while started and len(self._rows) < self.slots and self.busy:
                started = self._start(events)
            if self._rows:
                self._add(self._decoder.write([row.answer.ids[-1] for row in self._rows]), 0, events)
        return events

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Hashable, int, Answer]]:
        """(key, number of the answer, answer) as they finish; prompts of like length run together."""
        for request in sorted(requests, key=lambda request: -len(request.prompt)):
            self.submit(request)
        while self.busy:
            for event in self.step():
                if event.answer is not None:
                    yield event.key, event.index, event.answer

    # --- slots

    def _start(self, events: list[Event]) -> bool:
        """Begin answers in the free slots, with their first token; False where there is none to begin."""
        free = self.slots - len(self._rows)
        if free > sum(len(prompt.unstarted) for prompt in self._prompts):
            self._read(free)
        first = len(self._rows)
        for prompt in self._prompts:
            while prompt.unstarted and len(self._rows) < self.slots:
                index = prompt.unstarted.popleft()
                self._decoder.open_answer(prompt.line)
                prompt.writing += 1
                draw = random_numbers(prompt.request.prompt, prompt.request.seeds[index])
                self._rows.append(_Row(prompt, index, draw))
        if len(self._rows) == first:
            return False
        self._add(torch.stack([row.prompt.logits for row in self._rows[first:]]), first, events)
        return True

    def _read(self, free: int) -> None:
        """Compute prompts: enough for the free slots, and some more where a pass would be too small."""
        taken: list[Request] = []
        answers = sum(len(prompt.unstarted) for prompt in self._prompts)
        while self._queue:
            width = max(len(request.prompt) for request in (*taken, self._queue[0]))
            tokens = width * (len(taken) + 1)
            if taken and (tokens > READ_TOKENS or (answers >= free and tokens > AHEAD_TOKENS)):
                break
            taken.append(self._queue.popleft())
            answers += len(taken[-1].seeds)
        if not taken:
            return
        logits = self._decoder.read([request.prompt for request in taken])
        for request, own in zip(taken, logits.unbind(), strict=True):
            limit = request.sampling.max_new_tokens
            if self.context is not None:
                limit = min(limit, self.context - len(request.prompt))
            line = len(self._prompts)
            self._prompts.append(_Prompt(request, line, own.clone(), limit, deque(range(len(request.seeds)))))

    def _add(self, logits: Tensor, first: int, events: list[Event]) -> None:
        """The next token of the rows from `first` on; finished ones leave."""
        rows = self._rows[first:]
        choices = choose(logits, rows)
        ended: list[tuple[int, Finish]] = []
        for place, (row, token) in enumerate(zip(rows, choices.tokens, strict=True)):
            answer, logprob = row.answer, None
            top = choices.tops[place] if choices.tops is not None else ()
            answer.ids.append(token)
            if row.sampling.logprobs and choices.logprobs is not None:
                logprob = choices.logprobs[place]
                answer.logprobs.append(logprob)
            finish: Finish | None = "stop" if token in row.sampling.ends else None
            if finish is None and len(answer.ids) >= row.prompt.limit:
                finish = "length"
            if finish is not None:
                ended.append((first + place, finish))
            done = answer if finish is not None else None
            events.append(Event(row.prompt.request.key, row.index, token, logprob, done, top))
        for line, finish in reversed(ended):  # from the last: what takes a closed line's place stays
            self._close(line, finish)

    def _close(self, line: int, finish: Finish) -> None:
        row = self._rows[line]
        row.answer.finish = finish
        self._decoder.close_answer(line)
        self._rows[line] = self._rows[-1]
        self._rows.pop()
        row.prompt.writing -= 1
        if not row.prompt.writing and not row.prompt.unstarted:
            self._close_prompt(row.prompt)

    def _close_prompt(self, prompt: _Prompt) -> None:
        if prompt.line >= len(self._prompts) or self._prompts[prompt.line] is not prompt:
            return  # closed with its last answer
        self._decoder.close_prompt(prompt.line)
        last = self._prompts.pop()
        if last is not prompt:
            self._prompts[prompt.line], last.line = last, prompt.line
        self._keys.discard(prompt.request.key)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Evaluation mode, no gradients."""
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self.model.train()
