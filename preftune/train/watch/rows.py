"""Which rows are watched: a few prompts with their better response, the same ones for the whole run.

In: token groups, a number and a seed. Out: rows whose prompts are short enough to be answered at little cost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.types import Layout, Origin, TokenizedGroup

PROMPT_TOKENS = 512  # longer prompts are passed over: they would cost more than they tell
ANSWER_TOKENS = 64  # of an answer at most
CHOSEN_TOKENS = 256  # of a chosen response, from its beginning, that are scored


@dataclass(frozen=True)
class WatchedRow:
    """chosen: the better response; responses: all of the group's without their end, cut to what an answer may have."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    responses: list[list[int]]
    origin: Origin


def choose_rows(
    groups: Sequence[TokenizedGroup], count: int, seed: int, layout: Layout, positions: int | None = None
) -> list[WatchedRow]:
    """`count` rows drawn by the seed, fewer where there are not so many, in the order of the data.

    Args:
        groups: those that are held out, else those that are trained on.
        layout: of the objective; of unpaired groups only desirable ones are taken, where there are any.
        positions: what the model can hold, prompt and answer together.
    """
    longest = PROMPT_TOKENS if positions is None else min(PROMPT_TOKENS, positions - ANSWER_TOKENS)
    fitting = [number for number, group in enumerate(groups) if len(group.prompt_ids) <= longest]
    if layout == Layout.UNPAIRED:
        fitting = [number for number in fitting if groups[number].scores[0] > 0] or fitting
    drawn = sorted(random.Random(seed).sample(fitting, min(count, len(fitting))))
    return [_row(groups[number], positions) for number in drawn]


def _row(group: TokenizedGroup, positions: int | None) -> WatchedRow:
    room = CHOSEN_TOKENS if positions is None else min(CHOSEN_TOKENS, positions - len(group.prompt_ids))
    return WatchedRow(
        group.prompt_ids,
        group.response_ids[0][:room],
        [ids[:-1][:ANSWER_TOKENS] for ids in group.response_ids],
        group.origin,
    )
