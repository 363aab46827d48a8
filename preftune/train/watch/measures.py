"""The figures of one look: answers and log-probs in, a few numbers out.

repetition   share of the answers that repeat themselves: fewer than 70 % of their 4-grams of tokens are distinct
distinct     distinct 2-grams of all answers together, by their number (distinct-2, Li et al. 2016, arXiv:1510.03055)
length       tokens of an answer, on average, its end included
ended        share of the answers that end within `ANSWER_TOKENS`
overlap      F1 of the tokens of an answer and of the nearest response of its row, on average
chosen       log-prob of the rows' chosen responses, nats per token
kl           KL(start || now), nats per token: mean of log p_start - log p_now over tokens drawn from the start's model
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from preftune.train.watch.rows import WatchedRow

GRAM, DISTINCT_FLOOR = 4, 0.7


@dataclass(frozen=True)
class Answered:
    """What one look found at one row. `answer` is greedy, without its end; log-probs are sums in nats.

    `drawn` was drawn from the model of the start at temperature 1, its end included; `drawn_logp` is its log-prob under
    the model of this look.
    """

    answer: list[int]
    ended: bool
    chosen_logp: float
    drawn: list[int]
    drawn_logp: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Answered:
        return cls(**values)


@dataclass(frozen=True)
class Measures:
    """See the module; all are means over the rows."""

    repetition: float
    distinct: float
    length: float
    ended: float
    overlap: float
    chosen: float
    kl: float

    def to_log(self) -> dict[str, float]:
        return {f"watch/{name}": round(value, 6) for name, value in asdict(self).items()}


def measure(rows: Sequence[WatchedRow], now: Sequence[Answered], start: Sequence[Answered]) -> Measures:
    """The figures of a look, for as many rows; `start` is the look at the start of the run."""
    count = len(rows)
    chosen_tokens = sum(len(row.chosen_ids) for row in rows)
    drawn_tokens = sum(len(found.drawn) for found in start)
    lost = sum(old.drawn_logp - new.drawn_logp for old, new in zip(start, now, strict=True))
    return Measures(
        repetition=sum(repeats(found.answer) for found in now) / count,
        distinct=distinct_share([found.answer for found in now], 2),
        length=sum(len(found.answer) + found.ended for found in now) / count,
        ended=sum(found.ended for found in now) / count,
        overlap=sum(nearest_overlap(found.answer, row) for found, row in zip(now, rows, strict=True)) / count,
        chosen=sum(found.chosen_logp for found in now) / chosen_tokens,
        kl=lost / max(drawn_tokens, 1),
    )


def repeats(ids: Sequence[int]) -> bool:
    return distinct_share([ids], GRAM) < DISTINCT_FLOOR


def distinct_share(texts: Sequence[Sequence[int]], size: int) -> float:
    """Distinct n-grams of all the texts by their number; 1 where there are none."""
    grams = [tuple(ids[at : at + size]) for ids in texts for at in range(len(ids) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def nearest_overlap(answer: Sequence[int], row: WatchedRow) -> float:
    """In [0, 1]."""
    return max(token_f1(answer, ids) for ids in row.responses)


def token_f1(one: Sequence[int], other: Sequence[int]) -> float:
    """Tokens in common, each as often as in both, by the mean number of tokens."""
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other)) if common else 0.0
