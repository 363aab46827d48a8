"""Arena-Hard: verdicts of two games a question against one baseline, and the scores of v0.1 and v2.0.

In game 1 assistant A is the baseline and B the model; in game 2 they have changed places. A verdict is one of
[[A>>B]] [[A>B]] [[A=B]] [[B>A]] [[B>>A]]; a strong one counts as three battles. Li et al. 2024, arXiv:2406.11939;
github.com/lmarena/arena-hard-auto (show_result.py of v0.1 and of v2.0).

* v0.1: all verdicts of a model, a null one left out; score = its Bradley-Terry win rate against the baseline, which
  with one opponent is (wins + ties / 2) / battles; interval: 2.5 to 97.5 percentiles of 100 bootstraps.
* v2.0: a question with a null verdict is left out; score = mean of 100 bootstraps; interval: 5 to 95 percentiles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from preftune.errors import DataError

Version = Literal["v0.1", "v2.0"]
STRONG = 3  # battles
BOOTSTRAPS, SEED = 100, 42
PERCENTILES = {"v0.1": (2.5, 97.5), "v2.0": (5.0, 95.0)}
LABEL = re.compile("[AB<>=]+")
DOUBLE, SINGLE = re.compile(rf"\[\[({LABEL.pattern})\]\]"), re.compile(rf"\[({LABEL.pattern})\]")

# The share of assistant A, and the number of battles.
V01 = {"A>>B": (1.0, STRONG), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, STRONG)}
V20 = V01 | {"B=A": (0.5, 1), "A<B": (0.0, 1), "A<<B": (0.0, STRONG), "B<A": (1.0, 1), "B<<A": (1.0, STRONG)}
LABELS = {"v0.1": V01, "v2.0": V20}


@dataclass(frozen=True)
class ArenaScore:
    """Percent. battles: strong ones counted three times; nulls: verdicts without a label; questions: that count."""

    score: float
    lower: float
    upper: float
    battles: int
    questions: int
    nulls: int


def read_verdict(judgment: str) -> tuple[str | None, bool]:
    """The label of a v0.1 judgment, and whether the judge is to be asked to go on (there was none at all).

    Several labels that differ are no verdict, and neither is one that v0.1 does not know.
    """
    labels = set(DOUBLE.findall(judgment))
    return (_known(labels.pop(), "v0.1"), False) if len(labels) == 1 else (None, not labels)


def read_verdict_v2(judgment: str) -> str | None:
    """The last label of a v2.0 judgment, in double brackets or else in single ones; None where v2.0 knows it not."""
    for pattern in (DOUBLE, SINGLE):
        if labels := pattern.findall(judgment.upper()):
            return _known(labels[-1], "v2.0")
    return None


def _known(label: str, version: Version) -> str | None:
    return label if label in LABELS[version] else None


def score(rows: Sequence[Mapping[str, Any]], version: Version = "v0.1") -> dict[str, ArenaScore]:
    """Model -> score, of the rows of one or several judgment files against the same baseline.

    Raises:
        DataError: a row is not of two games, a question is there twice, or no verdict counts.
    """
    read = {model: _battles(own, version) for model, own in rows_by_model(rows).items()}
    for model, (shares, _, nulls) in read.items():
        if not len(shares):
            raise DataError(f"judgments of {model!r}: none of {nulls} verdicts counts. Judge it again.")
    random = np.random.RandomState(SEED)
    resample = _pooled if version == "v0.1" else _by_model
    rounds = resample({model: shares for model, (shares, _, _) in read.items()}, random)
    found = {}
    for model, (shares, questions, nulls) in read.items():
        lower, upper = np.nanpercentile(rounds[model], PERCENTILES[version])
        middle = float(shares.mean()) if version == "v0.1" else float(rounds[model].mean())
        found[model] = ArenaScore(100 * middle, 100 * float(lower), 100 * float(upper), len(shares), questions, nulls)
    return found


def rows_by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Model -> its judgments, one of each question.

    Raises:
        DataError: a question is there twice.
    """
    judged: dict[str, dict[str, Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        own, name = judged.setdefault(row["model"], {}), str(row.get("question_id", row.get("uid", number)))
        if name in own:
            raise DataError(f"judgments of {row['model']!r}: question {name} is there twice, which would count twice. "
                            "Keep one of them.")  # fmt: skip
        own[name] = row
    return {model: list(own.values()) for model, own in judged.items()}


def _battles(rows: Sequence[Mapping[str, Any]], version: Version) -> tuple[np.ndarray, int, int]:
    """(B,) the model's share of each battle; how many questions count; how many verdicts are null."""
    shares: list[float] = []
    questions = nulls = 0
    for row in rows:
        own, empty = read_shares(row, version)
        nulls += empty
        questions += bool(own)
        shares += own
    return np.array(shares), questions, nulls


def read_shares(row: Mapping[str, Any], version: Version) -> tuple[list[float], int]:
    """The model's share of each battle of one question, and how many of its two verdicts are null.

    Raises:
        DataError: the row has not two games, or a verdict is none.
    """
    where = f"judgments of {row['model']!r}, question {row.get('question_id', row.get('uid', '?'))}"
    games = row.get("games")
    if not isinstance(games, list) or len(games) != 2:
        raise DataError(f"{where}: expected two games, found {len(games) if isinstance(games, list) else games!r}.")
    first, second = (_outcome(game, version, where) for game in games)
    empty = (first is None) + (second is None)
    if version == "v2.0" and empty:
        return [], empty
    return [1 - share for share in first or ()] + list(second or ()), empty


def _outcome(game: Any, version: Version, where: str) -> list[float] | None:
    """Assistant A's share of each battle; None where the verdict is null, or a label that the version knows not.

    arena-hard-auto writes down whatever its pattern finds, such as "A", and v0.1 gives that no weight.
    """
    label = game.get("score") if isinstance(game, Mapping) else game
    if label is None:
        return None
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise DataError(f"{where}: the verdict {label!r} is none of {', '.join(V20)} or null.")
    if label not in LABELS[version]:
        return None
    share, battles = LABELS[version][label]
    return [share] * battles


# --- intervals


def _pooled(shares: Mapping[str, np.ndarray], random: np.random.RandomState) -> dict[str, np.ndarray]:
    """v0.1: battles of all models are drawn together, so that their number per model varies too."""
    owner = np.repeat(np.arange(len(shares)), [len(own) for own in shares.values()])
    pool = np.concatenate(list(shares.values()))
    rounds = np.full((BOOTSTRAPS, len(shares)), np.nan)
    for number in range(BOOTSTRAPS):
        drawn = random.randint(0, len(pool), len(pool))
        sums = np.bincount(owner[drawn], weights=pool[drawn], minlength=len(shares))
        counts = np.bincount(owner[drawn], minlength=len(shares))
        rounds[number, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return dict(zip(shares, rounds.T, strict=True))


def _by_model(shares: Mapping[str, np.ndarray], random: np.random.RandomState) -> dict[str, np.ndarray]:
    """v2.0: as many battles of each model as it has."""
    rounds = {model: random.randint(0, len(own), (BOOTSTRAPS, len(own))) for model, own in shares.items()}
    return {model: own[rounds[model]].mean(axis=1) for model, own in shares.items()}
