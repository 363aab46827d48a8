"""AlpacaEval 2: the order of a game, the judge's preference, and the plain figures of a file of annotations.

An annotation holds `output_1` (the baseline's), `output_2` (the model's) and `preference`: between 1 (the baseline is
better) and 2 (the model is), 0 or 1.5 a tie, null not judged. The judge answers m or M for the output shown first or
second; its preference is the probability of M among both. Rules of the package alpaca-eval, annotator
weighted_alpaca_eval_gpt4_turbo (github.com/tatsu-lab/alpaca_eval; Dubois et al. 2024, arXiv:2404.04475).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.errors import DataError

FIRST, SECOND = "m", "M"  # what the judge calls the output that is shown first, and the one shown second
ANNOTATION_FIELDS = ("instruction", "output_1", "output_2", "preference")


@dataclass(frozen=True)
class WinRate:
    """The plain figures, named as in the official leaderboard; win rates and standard error in percent."""

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether the model's output is shown first: a choice by the instruction, the same for all models."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True])[0]


def read_preference(completion: Any) -> float | None:
    """2 - P(m) of a chat choice with log-probs: 1 if the output shown first is certainly better, 2 if the second.

    A token that is not among the top ones has probability 0; None where neither is there.
    """
    try:
        top = completion["logprobs"]["content"][0]["top_logprobs"]
        logps = {item["token"]: float(item["logprob"]) for item in top if item["token"] in (FIRST, SECOND)}
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if not logps or any(math.isnan(logp) for logp in logps.values()):
        return None
    highest = max(logps.values())
    if not math.isfinite(highest):
        return None
    first, second = (math.exp(logps.get(token, -math.inf) - highest) for token in (FIRST, SECOND))
    return 2 - first / (first + second)


def read_preference_text(text: str) -> float | None:
    """The same of an answer without log-probs: 1 for m, 2 for M, None for anything else."""
    return {FIRST: 1.0, SECOND: 2.0}.get(text.strip())


def unswitched(preference: float | None, switched: bool) -> float | None:
    """From the order of the game to (baseline, model)."""
    return 3 - preference if switched and preference is not None else preference


def preferences(annotations: Sequence[Mapping[str, Any]], name: str = "annotations") -> np.ndarray:
    """(R,) the probability that the model's output is better; NaN where a row was not judged.

    Raises:
        DataError: a preference is neither null nor in 0, 1 ... 2, or none was judged.
    """
    found = []
    for number, row in enumerate(annotations, 1):
        value = row["preference"]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            found.append(math.nan)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
            raise DataError(f"{name} row {number}: expected a preference of 1 (baseline) to 2 (model), 0 for a tie or "
                            f"null, found {value!r}.")  # fmt: skip
        else:
            found.append((1.5 if value == 0 else float(value)) - 1)
    if not np.isfinite(found).any():
        raise DataError(f"{name}: none of the {len(found)} rows has a preference. Judge them first.")
    return np.array(found)


def win_rate(annotations: Sequence[Mapping[str, Any]], name: str = "annotations") -> WinRate:
    """The plain figures over the rows that were judged.

    Raises:
        DataError: a preference is wrong, or none was judged.
    """
    won = preferences(annotations, name)
    won = won[np.isfinite(won)]
    draws = int((won == 0.5).sum())
    wins = int((won > 0.5).sum())
    return WinRate(
        win_rate=100 * float(won.mean()),
        standard_error=100 * standard_error(won),
        n_wins=wins,
        n_wins_base=int((won < 0.5).sum()),
        n_draws=draws,
        n_total=len(won),
        discrete_win_rate=100 * (wins + draws / 2) / len(won),
    )


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 where one value leaves it open."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def average_length(outputs: Sequence[Mapping[str, Any]], name: str = "model_outputs") -> int:
    """Mean characters of a model's outputs, cut to a whole number as published. Over all its rows, judged or not.

    Raises:
        DataError: an output is no text.
    """
    for number, row in enumerate(outputs, 1):
        if not isinstance(row.get("output"), str):
            raise DataError(f"{name} row {number}: expected 'output' to be a text, found {row.get('output')!r}.")
    return int(sum(len(row["output"]) for row in outputs) / len(outputs))
