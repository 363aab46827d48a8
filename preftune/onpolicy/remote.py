"""Sampling by servers: any OpenAI-compatible endpoint, one address or several that serve the same model.

With a tokenizer, the prompt's ids are made here, as in training, and continued as they stand (/completions, for which
vLLM and SGLang take ids). Without one, the conversation is sent (/chat/completions) and the server's template counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.endpoint import ChatReply, ChatRequest, Endpoint, ReplyCache
from preftune.endpoint.client import SILENT
from preftune.errors import DataError
from preftune.generation import Sampling
from preftune.model.load import load_tokenizer
from preftune.onpolicy.answers import Replies, Reply, Told, prompt_ids, template_mark
from preftune.onpolicy.journal import check_output, journal_folder
from preftune.onpolicy.local import process_place
from preftune.onpolicy.prompts import Prompt
from preftune.onpolicy.sample import CHUNK, SEEDS, sample_prompts


@dataclass
class EndpointAnswerer:
    """Servers that answer.

    Args:
        endpoint: where, and under which name the model is known there.
        sampling: `ends` and `logprobs` are not sent.
        chat: how the model's tokenizer writes prompts, to send ids; None sends conversations.
    """

    endpoint: Endpoint
    sampling: Sampling
    chat: ChatFormat | None = None

    def settings(self) -> dict[str, Any]:
        chosen = self.sampling
        return {
            "engine": "endpoint",
            "model": self.endpoint.model,
            "template": "of the server" if self.chat is None else template_mark(self.chat),
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "top_k": chosen.top_k,
            "max_tokens": chosen.max_new_tokens,
        }

    def answer(self, prompts: Sequence[Prompt], seeds: Sequence[int], told: Told) -> list[Replies]:
        requests, errors = [], {}
        for number, prompt in enumerate(prompts):
            try:
                asked = self._asked(prompt)
            except DataError as error:
                errors[number] = str(error)
                continue
            requests += [self._request(f"{number} {place}", asked, seed) for place, seed in enumerate(seeds)]
        found: dict[int, dict[int, Reply | str]] = {}
        for request, outcome in self.endpoint.ask(requests):
            number, place = map(int, request.key.split())
            own, tokens = found.setdefault(number, {}), None
            if isinstance(outcome, ChatReply):
                choice, tokens = outcome.choices[0], outcome.completion_tokens
                own[place] = Reply(choice.text, choice.finish or "stop", tokens)
            else:
                own[place] = f"{outcome.reason} ({outcome.tries} tries)"
            told(int(len(own) == len(seeds)), tokens or 0)
        return [
            Replies(error=errors[number])
            if number in errors
            else Replies(tuple(found[number][place] for place in range(len(seeds))))
            for number in range(len(prompts))
        ]

    def _asked(self, prompt: Prompt) -> dict[str, Any]:
        if self.chat is None:
            row = prompt.to_row()
            return {"messages": row["prompt"], "more": {"tools": row["tools"]} if "tools" in row else {}}
        ends = self.chat.special.get(self.chat.end_id)
        return {"prompt": prompt_ids(prompt, self.chat), "stop": (ends,) if ends else (), "more": {}}

    def _request(self, key: str, asked: dict[str, Any], seed: int) -> ChatRequest:
        chosen = self.sampling
        more = {**asked["more"], **({"top_k": chosen.top_k} if chosen.top_k else {})}
        return ChatRequest(
            key,
            **{**asked, "more": more},
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_new_tokens,
            seed=seed,
        )


def sample_from_endpoint(
    urls: Sequence[str],
    model: str,
    prompts: Sequence[Prompt],
    output: str | Path,
    *,
    sampling: Sampling,
    tokenizer: str | None = None,
    concurrency: int = 16,
    tries: int = 8,
    timeout: float = 600.0,
    seeds: Sequence[int] = SEEDS,
    chunk: int = CHUNK,
) -> dict[str, Any]:
    """Have the prompts answered by servers, or go on doing so; see `preftune.onpolicy.sample`.

    Replies are kept in the job's folder as they come, so that a chunk that is made again asks only for the rest.

    Args:
        urls: addresses up to /v1; a slow or failing one is asked less.
        model: its name there.
        tokenizer: folder or hub name of the model's tokenizer, to send token ids.
        concurrency: requests under way at once.
        tries, timeout: of a request, the latter in seconds.

    Raises:
        EndpointError: no server is left or answers any more; the same call goes on.
        PreftuneError: an address, the tokenizer or a setting is wrong, or a job with other settings was begun.
    """
    output = Path(output)
    check_output(output)
    chat = None if tokenizer is None else read_chat_format(load_tokenizer(tokenizer))
    rank, world = process_place()
    cache = ReplyCache(journal_folder(output) / f"replies-{rank}.jsonl")
    with closing(cache):
        endpoint = Endpoint(
            urls, model, concurrency=concurrency, tries=tries, timeout=timeout, cache=cache, stop_after=SILENT
        )
        answerer = EndpointAnswerer(endpoint, sampling, chat)
        return sample_prompts(prompts, answerer, output, seeds=seeds, chunk=chunk, rank=rank, world=world)
