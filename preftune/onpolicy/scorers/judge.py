"""A language model behind an endpoint as judge: it rates each answer from 1 to 10, or says of two which is better.

A judge ends with its verdict in double brackets, [[7]] or [[A]], [[B]], [[C]] for a tie; the last one counts. A reply
without one, or a request that failed, is kept as a failure with its reason. Two answers are shown in both orders, as
judges favour a place. The forms are those of MT-Bench's judge (Zheng et al. 2023, arXiv:2306.05685), the words our own.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from preftune.endpoint import ChatReply, ChatRequest, Endpoint, Failure, Prices, estimate
from preftune.endpoint.rating import TEMPLATE, rating_text, read_rating, read_verdict
from preftune.onpolicy.scorers.base import Score, conversation
from preftune.onpolicy.scorers.games import all_games, scores_of
from preftune.types import Example

log = logging.getLogger(__name__)

How = Literal["rating", "pairwise"]
PAIRWISE = """Two assistants, A and B, answer the conversation below. Judge which answer is better: correct, helpful \
and to the point, and true to what was asked for. Let neither their order nor their length sway you.

<conversation>
{prompt}
</conversation>

<answer_A>
{a}
</answer_A>

<answer_B>
{b}
</answer_B>

Explain in a few sentences, then end with your verdict in double brackets: [[A]] if A is better, [[B]] if B is better, \
[[C]] for a tie."""
_WON = {"A": 1.0, "B": 0.0, "C": 0.5}


@dataclass(frozen=True)
class JudgeScorer:
    """An endpoint that judges.

    Args:
        how: rating: a request an answer, scores 1 to 10; pairwise: two requests for every two answers, scores are mean
            wins in [0, 1].
        max_tokens: of a judgement.
    """

    endpoint: Endpoint
    how: How = "rating"
    temperature: float = 0.0
    max_tokens: int = 1024

    def settings(self) -> dict[str, Any]:
        text = TEMPLATE if self.how == "rating" else PAIRWISE
        sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {
            "judge": self.how,
            "judge_model": self.endpoint.model,
            **sampling,
            "template": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
        }

    def say_cost(self, examples: Sequence[Example], prices: Prices | None) -> None:
        """What all of it takes, before the first request."""
        log.info("The judge '%s': %s.", self.endpoint.model, estimate(self._requests(self._texts(examples)), prices))

    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        texts = self._texts(examples)
        asked = self._requests(texts)
        replies = dict(zip(dict.fromkeys(texts), self.endpoint.ask_in_order(asked), strict=True))
        outcomes = iter([replies[text] for text in texts])
        if self.how == "rating":
            return [[_rated(next(outcomes)) for _ in example.responses] for example in examples]
        return [
            scores_of(example.responses, [(game, *_won(next(outcomes))) for game in all_games(example.responses)])
            for example in examples
        ]

    def _texts(self, examples: Sequence[Example]) -> list[str]:
        """What is asked, in the order of the answers or games."""
        texts: list[str] = []
        for example in examples:
            prompt, answers = conversation(example), example.responses
            if self.how == "rating":
                texts += [rating_text(prompt, text) for text in answers]
            else:
                texts += [_pairwise_text(prompt, answers[i], answers[j]) for i, j in all_games(answers)]
        return texts

    def _requests(self, texts: Sequence[str]) -> list[ChatRequest]:
        """The same question is asked once."""
        return [
            ChatRequest(
                str(number),
                [{"role": "user", "content": text}],
                temperature=self.temperature,
                max_tokens=self.max_tokens,
            )
            for number, text in enumerate(dict.fromkeys(texts))
        ]


def _pairwise_text(prompt: str, a: str, b: str) -> str:
    """In one pass: an answer may itself hold "{b}"."""
    parts = {"prompt": prompt, "a": a, "b": b}
    return re.sub(r"\{(prompt|a|b)\}", lambda found: parts[found[1]], PAIRWISE)


def _rated(outcome: ChatReply | Failure) -> Score:
    if isinstance(outcome, Failure):
        return Score(None, f"the request failed: {outcome.reason}")
    return Score(*read_rating(outcome.text))


def _won(outcome: ChatReply | Failure) -> tuple[float | None, str | None]:
    if isinstance(outcome, Failure):
        return None, f"the request failed: {outcome.reason}"
    verdict, problem = read_verdict(outcome.text)
    if verdict is None:
        return None, problem
    won = _WON.get(verdict.upper())
    return won, None if won is not None else f"the verdict is {verdict[:40]!r}, expected A, B or C"
