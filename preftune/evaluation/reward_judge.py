"""A local reward model as the judge of Arena-Hard and of MT-Bench's games, under a name of its own.

d = (r_model - r_baseline) / scale, of the same conversation, decides both games, as a reward has no order:

    |d| < TIE        A=B, a tie
    |d| < STRONG     A>B or B>A
    otherwise        A>>B or B>>A, which Arena-Hard counts three times

An empty answer has no reward: it loses to any other by A>>B or B>>A, and two of them tie.

The two bounds are this judge's own. A judge that writes has no such numbers, so its figures and these never belong into
one table; the judge is called `reward_model:NAME`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from preftune.evaluation import arena_judge
from preftune.evaluation.arena_hard import Version
from preftune.evaluation.files import Rows
from preftune.evaluation.mt_pairs import Match
from preftune.types import Example, Message, Origin

log = logging.getLogger(__name__)

TIE, STRONG = 0.1, 2.0  # of d; as probabilities 0.525 and 0.88


def judge_name(model: str) -> str:
    return f"reward_model:{model}"


def label_of(difference: float) -> str:
    """The verdict where assistant A is ahead by so much."""
    if abs(difference) < TIE:
        return "A=B"
    sign = ">" if abs(difference) < STRONG else ">>"
    return f"A{sign}B" if difference > 0 else f"B{sign}A"


def lead(first: float | None, second: float | None, scale: float) -> float:
    """How far the first answer is ahead; None is the reward of an empty one."""
    if first is None or second is None:
        return 0.0 if first is second else math.copysign(math.inf, 1 if second is None else -1)
    return (first - second) / scale


def judge_arena_by_reward(
    model: str, matches: Sequence[arena_judge.Match], version: Version = "v0.1", scale: float = 1.0
) -> Rows:
    """Arena-Hard's judgments of all matches.

    Raises:
        ModelError: the reward model cannot be loaded, or gives no finite score.
    """
    examples = [
        Example((Message("user", match.question),), (answer,), Origin("answers", "", number))
        for number, match in enumerate(matches, 1)
        for answer in match.answers
    ]
    flat = rewards_of(model, examples)
    rows = []
    for match, own, base in zip(matches, flat[::2], flat[1::2], strict=True):
        ahead = lead(base, own, scale)
        games = [{"score": label_of(value), "judgment": None} for value in (ahead, -ahead)]
        rows.append(match.row(judge_name(model), games, version, rewards=[base, own]))
    return rows


def play_by_reward(model: str, matches: Sequence[Match], scale: float = 1.0) -> Rows:
    """MT-Bench's games; in the second turn each side's own first answer is part of its conversation.

    Raises:
        ModelError: the reward model cannot be loaded, or gives no finite score.
    """
    examples = []
    for number, match in enumerate(matches, 1):
        for side in match.answers:
            talk = [Message("user", match.question["turns"][0])]
            if match.turn == 2:
                talk += [Message("assistant", side[0]), Message("user", match.question["turns"][1])]
            examples.append(Example(tuple(talk), (side[match.turn - 1],), Origin("answers", "", number)))
    flat = rewards_of(model, examples)
    rows = []
    for match, own, base in zip(matches, flat[::2], flat[1::2], strict=True):
        label = label_of(lead(own, base, scale))
        winner = {"A": "model_1", "B": "model_2"}[label[0]] if label != "A=B" else "tie"
        rows.append(match.row(g1_winner=winner, g2_winner=winner, judge=[judge_name(model), None],
                              rewards=[own, base]))  # fmt: skip
    return rows


def rewards_of(model: str, examples: Sequence[Example]) -> list[float | None]:
    """Of the one response of each; None for an empty one."""
    from preftune.serve.reward import open_reward_model, score_examples

    there = [number for number, example in enumerate(examples) if example.responses[0].strip()]
    scores = score_examples(open_reward_model(model), [examples[number] for number in there])
    if scores.cut:
        log.warning("%d of %d answers are longer than the reward model reads and were cut.", scores.cut, len(examples))
    if len(there) < len(examples):
        log.warning(
            "%d of %d answers are empty; they have no reward and lose.", len(examples) - len(there), len(examples)
        )
    found: list[float | None] = [None] * len(examples)
    for number, values in zip(there, scores.values, strict=True):
        found[number] = values[0]
    return found
