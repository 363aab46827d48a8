"""What a request asks, held against the limits and put into the running batch."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from preftune.api.answers import Answers
from preftune.api.batch import Batch, BusyError, StoppedError
from preftune.api.door import Refusal
from preftune.api.metrics import Metrics
from preftune.api.schema import ChatMessage, ChatRequest, CompletionRequest, ScoreRequest
from preftune.api.served import Served, Shelf
from preftune.generation import Sampling
from preftune.serve.reward import RewardModel, Scores, prompt_ids, score_examples
from preftune.types import Example, Message, Origin

Asked = ChatRequest | CompletionRequest
COMPLETION_TOKENS = 16  # of /v1/completions where nothing is said, as OpenAI has it
SMALLEST_TOP_P = 1e-9  # top_p 0 is the likeliest token


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Args:
        prompt_tokens: of one prompt, to answer or to score responses to; None = what the model reads.
        max_tokens: of one answer; also what a chat gets that does not say how many.
        waiting: answers, or requests for scores, that may wait for their turn.
        slots: answers that are written at the same time.
    """

    prompt_tokens: int | None = None
    max_tokens: int = 4096
    waiting: int = 64
    slots: int = 32


@dataclass
class Service:
    """What the routes work with."""

    shelf: Shelf
    limits: Limits = Limits()
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))
    scores_waiting: int = 0

    def __post_init__(self) -> None:
        self.batch = Batch(self.shelf.language, slots=self.limits.slots, waiting=self.limits.waiting)
        self._encoder = ThreadPoolExecutor(1, "encode")  # a long prompt does not hold up the event loop

    def language(self, name: str) -> Served:
        if name not in self.shelf.language:
            raise self.unknown(name, "answers", "/v1/score")
        return self.shelf.language[name]

    def reward(self, name: str) -> RewardModel:
        if name not in self.shelf.reward:
            raise self.unknown(name, "gives scores", "/v1/chat/completions")
        return self.shelf.reward[name]

    def unknown(self, name: str, does: str = "", other: str = "") -> Refusal:
        names = ", ".join(f"'{known}'" for known in self.shelf.names)
        if name in self.shelf.names:
            return Refusal(400, f"'{name}' is not a model that {does}; ask it at {other}.", "wrong_kind_of_model")
        return Refusal(404, f"There is no model '{name}' here. This server has {names}.", "model_not_found")

    async def encode(self, served: Served, write: Callable[[], list[list[int]]]) -> list[list[int]]:
        """Prompt ids, within the limits."""
        prompts = await asyncio.get_running_loop().run_in_executor(self._encoder, write)
        for ids in prompts:
            self.check_length(ids, served.context)
            if max(ids) >= served.rows:
                line = f"The prompt has the token id {max(ids)}; the ids of '{served.name}' end at {served.rows - 1}."
                raise Refusal(400, line, "unknown_token")
        return prompts

    def check_length(self, ids: list[int], context: int | None) -> None:
        """Refuse an empty prompt, and one that leaves no room or is longer than prompts may be."""
        limit = min((n for n in (self.limits.prompt_tokens, (context or math.inf) - 1) if n), default=math.inf)
        if not ids:
            raise Refusal(400, "The prompt is empty. Give it at least one token.", "empty_prompt")
        if len(ids) > limit:
            line = f"The prompt has {len(ids)} tokens; at most {limit} can be read here. Shorten it."
            raise Refusal(400, line, "context_length_exceeded")

    def sampling(self, body: Asked, served: Served, longest: int, tops: int | None) -> Sampling:
        """`tops`: None where no log-probs were asked for."""
        if longest > self.limits.max_tokens:
            line = f"max_tokens is {longest}; this server writes at most {self.limits.max_tokens} tokens."
            raise Refusal(400, line, "max_tokens_too_large")
        return Sampling(
            max_new_tokens=longest,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else max(body.top_p, SMALLEST_TOP_P),
            top_k=body.top_k or 0,
            ends=served.ends,
            logprobs=tops is not None,
            top_logprobs=tops or 0,
        )

    def retry_after(self) -> int:
        """Seconds after which a slot may be free: the mean time of a request."""
        return max(1, min(60, math.ceil(self.metrics.request_seconds.mean)))


# --- a request


async def ask_chat(service: Service, body: ChatRequest) -> Answers:
    served = service.language(body.model)
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "'top_logprobs' needs 'logprobs': true.", "invalid_value")
    asked = {n for n in (body.max_tokens, body.max_completion_tokens) if n is not None}
    if len(asked) > 1:
        raise Refusal(400, "'max_tokens' and 'max_completion_tokens' disagree. Keep one of them.", "invalid_value")
    messages = _messages(body.messages)
    if served.system and all(message.role != "system" for message in messages):
        messages.insert(0, Message("system", served.system))
    sampling = service.sampling(
        body, served, min(asked, default=service.limits.max_tokens), (body.top_logprobs or 0) if body.logprobs else None
    )
    prompts = await service.encode(served, lambda: served.format.prompt_ids([messages]))
    return _start(service, served, prompts, body, sampling)


async def ask_completions(service: Service, body: CompletionRequest) -> Answers:
    served = service.language(body.model)
    default = min(COMPLETION_TOKENS, service.limits.max_tokens)
    sampling = service.sampling(body, served, body.max_tokens or default, body.logprobs)
    prompt = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(prompt[0], int):
        prompt = [prompt]
    if isinstance(prompt[0], str):
        form = served.format
        prompts = await service.encode(served, lambda: [form.with_bos(ids) for ids in form.encode(prompt)])
    else:
        prompts = await service.encode(served, lambda: prompt)
    return _start(service, served, prompts, body, sampling, continues=True)


def _start(
    service: Service,
    served: Served,
    prompts: list[list[int]],
    body: Asked,
    sampling: Sampling,
    *,
    continues: bool = False,
) -> Answers:
    seed = secrets.randbits(62) if body.seed is None else body.seed
    seeds = tuple(seed + number for number in range(body.n or 1))
    asked, most = len(prompts) * len(seeds), service.limits.slots + service.limits.waiting
    if asked > most:  # else it would be sent away, to come again, for ever
        line = f"{asked} answers are asked for at once; this server takes at most {most}. Ask for fewer."
        raise Refusal(400, line, "too_many_answers")
    return Answers(service.batch, service.metrics, served, prompts, seeds, sampling, body.stops, continues)


async def ask_score(service: Service, body: ScoreRequest) -> Scores:
    reward = service.reward(body.model)
    messages = _messages(body.messages)
    if body.responses is None and (messages[-1].role != "assistant" or len(messages) < 2):
        raise Refusal(400, "Without 'responses' the last of several messages must be an assistant's.", "invalid_value")
    responses = (messages.pop().content,) if body.responses is None else tuple(body.responses)
    if service.batch.stopping:
        raise StoppedError("The server is shutting down.")
    if service.scores_waiting > service.limits.waiting:
        raise BusyError(f"{service.scores_waiting} requests for scores wait already. Ask again in a while.")
    example = Example(tuple(messages), responses, Origin("request", "score", 1))
    service.scores_waiting += 1
    try:
        return await asyncio.wrap_future(service.batch.call(partial(_score, service, reward, example)))
    finally:
        service.scores_waiting -= 1


def _score(service: Service, reward: RewardModel, example: Example) -> Scores:
    """In the batch's thread, which has the tokenizer to itself; every response takes the prompt along."""
    service.check_length(prompt_ids(reward, example), reward.context)
    return score_examples(reward, [example])


def _messages(said: list[ChatMessage]) -> list[Message]:
    return [Message("system" if turn.role == "developer" else turn.role, turn.text) for turn in said]
