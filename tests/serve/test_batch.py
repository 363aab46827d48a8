"""Tickets of the batch, without a model: in what order tokens and the ends of answers may come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from preftune.api.answers import Answers
from preftune.api.batch import Batch
from preftune.api.metrics import Metrics
from preftune.generation import Answer, Event, Sampling
from tests.data.conftest import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()


def test_an_answer_that_ends_by_itself_right_behind_its_stop_string_ends_once():
    """Both tokens are there before anybody looks at the first; the other answer goes on, and its request with it."""
    a, t, z = TOKENIZER("atz", add_special_tokens=False)["input_ids"]
    served = SimpleNamespace(name="m", format=SimpleNamespace(tokenizer=TOKENIZER))

    async def ask():
        batch = Batch({})
        answers = Answers(batch, Metrics(), served, [[a]], (0, 1), Sampling(9), ["t"])
        (ticket,) = answers.tickets
        batch._deliver([(ticket, Event(ticket, 0, t)), (ticket, Event(ticket, 0, z, answer=ended([t, z])))])
        pieces = answers.pieces()
        first = await anext(pieces)
        assert batch.load == 1
        batch._deliver([(ticket, Event(ticket, 1, a)), (ticket, Event(ticket, 1, z, answer=ended([a, z])))])
        assert batch.load == 0
        async with asyncio.timeout(5):
            return [first, *[piece async for piece in pieces]]

    def ended(ids):
        return Answer(ids, finish="length")

    found = [(piece.index, piece.text, piece.finish) for piece in asyncio.run(ask())]
    assert found == [(0, "", "stop"), (1, "a", None), (1, "z", "length")]
