"""Who answers: prompts in, for each the answers by seed, or why there are none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.data.encode import encode_examples
from preftune.errors import DataError
from preftune.generation import Request, Sampling, build_engine
from preftune.model.ends import ending_ids
from preftune.onpolicy.prompts import Prompt

Told = Callable[[int, int], None]  # prompts finished, tokens written, since the last time


@dataclass(frozen=True)
class Reply:
    """One answer. `finish` is stop, or length where it was cut off; `tokens` None where a server did not count."""

    text: str
    finish: str
    tokens: int | None


@dataclass(frozen=True)
class Replies:
    """The answers to one prompt, in the order of the seeds, or for a seed the reason why there is none.

    `error` says why there are none at all.
    """

    replies: tuple[Reply | str, ...] = ()
    prompt_tokens: int | None = None
    error: str | None = None


class Answerer(Protocol):
    """Something that answers prompts."""

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, beside prompt and seeds; JSON values."""
        ...

    def answer(self, prompts: Sequence[Prompt], seeds: Sequence[int], told: Told) -> list[Replies]:
        """Answers to each prompt, in their order; `told` hears of the progress."""
        ...


class EngineAnswerer:
    """A model in this process, through the engine.

    Args:
        model: a causal language model, on its device, or one of `load_vllm`.
        tokenizer: whose chat template writes the prompts: the ids are those of training.
        sampling: `ends` is filled in: the template's end of turn and what the model itself names.
        slots: answers that are written at the same time.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, slots: int) -> None:
        self.chat: ChatFormat = read_chat_format(tokenizer)
        self.ends = ending_ids(model, self.chat)
        self.sampling, self.slots = sampling, slots
        self.engine = build_engine(model, slots)

    def settings(self) -> dict[str, Any]:
        chosen = self.sampling
        return {
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "top_k": chosen.top_k,
            "max_tokens": chosen.max_new_tokens,
            "ends": list(self.ends),
            "template": template_mark(self.chat),
            "slots": self.slots,
        }

    def answer(self, prompts: Sequence[Prompt], seeds: Sequence[int], told: Told) -> list[Replies]:
        given = [self._prompt_ids(prompt) for prompt in prompts]
        found: list[Replies] = [Replies(error=ids) if isinstance(ids, str) else Replies() for ids in given]
        sampling = replace(self.sampling, ends=self.ends)
        requests = [
            Request(number, ids, tuple(seeds), sampling) for number, ids in enumerate(given) if isinstance(ids, list)
        ]
        replies: dict[int, dict[int, Reply]] = {number: {} for number in range(len(given))}
        for key, index, answer in self.engine.run(requests):
            assert isinstance(key, int)
            ids, own = given[key], replies[key]
            assert isinstance(ids, list)
            written = answer.ids[:-1] if answer.ended else answer.ids
            own[index] = Reply(self._text(ids, written), answer.finish, len(answer.ids))
            done = len(own) == len(seeds)
            if done:
                ordered = tuple(own[place] for place in range(len(seeds)))
                found[key] = Replies(ordered, len(ids))
            told(int(done), len(answer.ids))
        return found

    def _prompt_ids(self, prompt: Prompt) -> list[int] | str:
        """The ids to sample from, or why there are none."""
        try:
            ids = prompt_ids(prompt, self.chat)
        except DataError as error:
            return str(error)
        context = self.engine.context
        if context is not None and len(ids) >= context:
            return f"{prompt.example.origin}: the prompt has {len(ids)} tokens, the model reads {context}. Shorten it."
        return ids

    def _text(self, prompt: list[int], ids: list[int]) -> str:
        """As it follows the prompt: decoded alone, some tokenizers drop the space that a text begins with."""

        def decode(ids: list[int]) -> str:
            return str(self.chat.tokenizer.decode(ids, skip_special_tokens=True))

        before, together = decode(prompt[-1:]), decode([*prompt[-1:], *ids])
        return together[len(before) :] if together.startswith(before) else decode(ids)


def prompt_ids(prompt: Prompt, chat: ChatFormat) -> list[int]:
    """The ids to sample from, those of training: with one BOS where the tokenizer's rule says so, else none.

    Raises:
        DataError: the template refuses the conversation.
    """
    group = encode_examples([prompt.example], chat)[0]
    if isinstance(group, DataError):
        raise group
    ids, bos = group.prompt_ids, chat.bos_id
    assert bos is None or (ids[0] == bos and ids[1:2] != [bos])
    return ids


def template_mark(chat: ChatFormat) -> str:
    """A hash of the chat template."""
    return hashlib.blake2b((chat.template or "").encode(), digest_size=8).hexdigest()
