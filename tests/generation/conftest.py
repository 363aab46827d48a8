"""Requests of many lengths, and the answer that a model gives to one of them by itself."""

from __future__ import annotations

import random

import torch

from preftune.generation import Request, Sampling
from tests.small import VOCABULARY

END = 2


def build_requests(count: int, seeds: tuple[int, ...] = (0, 1, 2), *, longest: int = 40, tokens: int = 30, **sampling):
    """Prompts of 1 to `longest` tokens, answers of up to 1 to `tokens`."""
    draw = random.Random(0)
    sampling = {"temperature": 0.0, "ends": (END,), **sampling}
    return [
        Request(
            number,
            [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, longest))],
            seeds,
            Sampling(max_new_tokens=draw.randint(1, tokens), **sampling),
        )
        for number in range(count)
    ]


def answers_of(engine, requests):
    return {(key, index): answer for key, index, answer in engine.run(requests)}


def greedy(model, request: Request) -> list[int]:
    """`model.generate` on one prompt."""
    prompt = torch.tensor([request.prompt])
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(request.sampling.ends) or None,
        pad_token_id=0,
    )
    return out[0, len(request.prompt) :].tolist()


def assert_same_but_for_ties(model, request: Request, found: list[int], wanted: list[int]) -> None:
    """Equal, or the first difference is where the two likeliest tokens lie within 1e-4."""
    if found == wanted:
        return
    place = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other)
    with torch.inference_mode():
        logits = model(torch.tensor([request.prompt + wanted[:place]])).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    assert first - second < 1e-4, f"{request.key}: token {place} differs"
