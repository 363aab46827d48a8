"""Arena-Hard with style taken out: length and Markdown enter the Bradley-Terry regression beside the models.

    P(a beats b) = σ( s_a - s_b + Σ_k c_k x_k ),    x: differences of tokens, headers, lists and bold text, z-scored

A model's score is its win rate against the baseline by s alone. As x is z-scored over the battles of all models, that
is a score at their average style, not at the baseline's: a model by itself keeps its style. As arena-hard-auto has it
(show_result.py of each version):

* v0.1: x = (a - b) / (a + b + 1) of counts; models in units of ln 10; the penalty is that of scikit-learn's logistic
  regression, half the squared coefficients; interval: 2.5 to 97.5 percentiles of 100 bootstraps.
* v2.0: tokens by (m - b) / (m + b), the others as counts per token; torch's L-BFGS with its 50 steps and no penalty;
  score: median of 100 bootstraps, interval: 5 to 95 percentiles. (With one kind of style alone the script of v2.0 takes
  the wrong columns; here they are those of that kind.)

Counts are read from the answers' `metadata` (or `conv_metadata`) where they are, which is where arena-hard-auto has
them; else they are counted here, and the length is that in characters, as its tokenizer needs a download.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from preftune.errors import DataError
from preftune.evaluation.arena_hard import (
    BOOTSTRAPS,
    PERCENTILES,
    SEED,
    ArenaScore,
    Version,
    read_shares,
    rows_by_model,
)
from preftune.evaluation.bradley_terry import BASE

log = logging.getLogger(__name__)

Control = Literal["both", "length", "markdown"]
COLUMNS: dict[str, tuple[int, ...]] = {"both": (0, 1, 2, 3), "length": (0,), "markdown": (1, 2, 3)}
ELEMENTS = ("token_len", "header_count", "list_count", "bold_count")
FEATURES = ("length", "headers", "lists", "bold")
CODE = re.compile("```([^`]*)```")
MARKDOWN = (  # headers, lists, bold text
    (r"^#{1,6}\s",),
    (r"^\s*\d+\.\s", r"^\s*[-*+]\s"),
    (r"\*\*[^*\n]+\*\*", r"__[^_\n]+__"),
)
STEPS, TOLERANCE = 100, 1e-10  # of Newton's method
RATE, TORCH_STEPS, TORCH_TOLERANCE, START = 0.1, 50, 1e-9, 0.5  # v2.0's fit; all coefficients start at the last


@dataclass(frozen=True)
class StyledScores:
    """scores: by model; coefficients: of the features, in standard deviations of each; unit: of the length."""

    scores: dict[str, ArenaScore]
    coefficients: dict[str, float]
    unit: str


@dataclass(frozen=True)
class Battles:
    """Of all models: owner (N,) the model's number, outcome (N,) its share, x (N, K) how its style differs."""

    owner: np.ndarray
    outcome: np.ndarray
    x: np.ndarray


def score_with_style(
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    version: Version = "v0.1",
    control: Control = "both",
) -> StyledScores:
    """Model -> score with style taken out.

    Args:
        rows: judgments against one baseline, as `arena_hard.score` takes them.
        answers, baseline: arena-hard-auto's answers, of all judged models and of the baseline.

    Raises:
        DataError: an answer is missing, a question is judged twice, or a figure cannot be controlled as it never
            differs.
    """
    models = list(rows_by_model(rows))
    names = list(dict.fromkeys(map(model_of, baseline)))
    if len(names) != 1 or names[0] in models:
        raise DataError(
            f"baseline: expected the answers of one model that is not judged, found {', '.join(names[:3])}."
        )
    counts, unit = style_counts([*(row for row in answers if model_of(row) != names[0]), *baseline])
    battles, questions, nulls = _battles(rows, models, counts, names[0], version)
    if len(models) == 1:
        log.warning("Style control scores at the average style of the judged models. With %r alone there is nothing to "
                    "hold it against: score several together.", models[0])  # fmt: skip
    chosen = COLUMNS[control]
    battles = Battles(battles.owner, battles.outcome, _standard(battles.x[:, chosen], chosen, version))
    fit = _fit_v01 if version == "v0.1" else _fit_v20
    random = np.random.RandomState(SEED)
    size = len(battles.owner)
    rounds = np.array([fit(battles, len(models), random.randint(0, size, size)) for _ in range(BOOTSTRAPS)])
    middle = fit(battles, len(models), np.arange(size)) if version == "v0.1" else np.nanmedian(rounds, axis=0)
    scores = {}
    for number, model in enumerate(models):
        lower, upper = np.nanpercentile(_sigmoid(rounds[:, number]), PERCENTILES[version])
        scores[model] = ArenaScore(
            score=100 * float(_sigmoid(middle[number])),
            lower=100 * float(lower),
            upper=100 * float(upper),
            battles=int((battles.owner == number).sum()),
            questions=questions[model],
            nulls=nulls[model],
        )
    coefficients = zip([FEATURES[column] for column in chosen], map(float, middle[len(models) :]), strict=True)
    return StyledScores(scores, dict(coefficients), unit)


# --- counts


def count_markdown(text: str) -> tuple[int, int, int]:
    """Headers, list items and bold passages outside of code blocks."""
    for block in CODE.findall(text):
        text = text.replace(block, "")
    headers, lists, bold = (sum(len(re.findall(one, text, re.MULTILINE)) for one in kind) for kind in MARKDOWN)
    return headers, lists, bold


def style_counts(answers: Sequence[Mapping[str, Any]]) -> tuple[dict[tuple[str, str], np.ndarray], str]:
    """(model, question) -> (4,) length, headers, lists, bold; and the length's unit, which is one for all."""
    stored = all(_stored(row) is not None for row in answers)
    found = {}
    for number, row in enumerate(answers, 1):
        key = (model_of(row), str(row.get("uid", row.get("question_id"))))
        if key in found:
            raise DataError(f"answers row {number}: a second answer of {key[0]!r} to question {key[1]}. Keep one.")
        found[key] = np.array(_stored(row) if stored else _counted(row, number), dtype=float)
    return found, "tokens" if stored else "characters"


def _stored(row: Mapping[str, Any]) -> list[float] | None:
    """Those that arena-hard-auto wrote beside the answer."""
    data = row.get("metadata") or row.get("conv_metadata")
    if not isinstance(data, Mapping) or any(name not in data for name in ELEMENTS):
        return None
    try:
        return [float(sum(v.values()) if isinstance(v := data[name], Mapping) else v) for name in ELEMENTS]
    except (TypeError, ValueError):
        raise DataError(f"answers: the metadata of {model_of(row)!r} are no counts: {str(data)[:80]}.") from None


def _counted(row: Mapping[str, Any], number: int) -> list[float]:
    try:
        answer = row["messages"][-1]["content"]["answer"]
    except (KeyError, IndexError, TypeError):
        answer = None
    if not isinstance(answer, str):
        raise DataError(f"answers row {number}: expected messages that end in the assistant's {{answer: TEXT}}.")
    return [len(answer), *count_markdown(answer)]


def model_of(row: Mapping[str, Any]) -> str:
    """Of an answer, in either version's form."""
    return str(row.get("model", row.get("model_id")))


# --- battles


def _battles(
    rows: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    counts: Mapping[tuple[str, str], np.ndarray],
    baseline: str,
    version: Version,
) -> tuple[Battles, dict[str, int], dict[str, int]]:
    """All battles; how many questions count and how many verdicts are null, by model."""
    owner: list[int] = []
    outcome: list[float] = []
    x: list[np.ndarray] = []
    questions, nulls = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for row in rows:
        model, uid = row["model"], str(row.get("question_id", row.get("uid")))
        shares, empty = read_shares(row, version)
        nulls[model] += empty
        questions[model] += bool(shares)
        for name in (model, baseline):
            if shares and (name, uid) not in counts:
                raise DataError(f"answers: {name!r} has none to question {uid}, which is judged. Give its answers.")
        if shares:
            difference = _difference(counts[model, uid], counts[baseline, uid], version)
            owner += [models.index(model)] * len(shares)
            outcome += shares
            x += [difference] * len(shares)
    absent = [model for model in models if not questions[model]]
    if absent:
        raise DataError(f"judgments of {absent[0]!r}: none of {nulls[absent[0]]} verdicts counts. Judge it again.")
    return Battles(np.array(owner), np.array(outcome), np.array(x)), questions, nulls


def _difference(own: np.ndarray, base: np.ndarray, version: Version) -> np.ndarray:
    """(4,) of the model above the baseline."""
    if version == "v0.1":
        return (own - base) / (own + base + 1)
    length = (own[0] - base[0]) / max(own[0] + base[0], 1.0)  # both empty: no difference
    own, base = own[1:] / (own[0] + 1), base[1:] / (base[0] + 1)
    return np.concatenate([[length], (own - base) / (own + base + 1)])


def _standard(x: np.ndarray, columns: Sequence[int], version: Version) -> np.ndarray:
    """Mean 0, deviation 1 over the battles: v0.1 divides by their number, v2.0 by one less."""
    spread = x.std(axis=0, ddof=0 if version == "v0.1" else 1) if len(x) > 1 else np.zeros(x.shape[1])
    for column, value in zip(columns, spread, strict=True):
        if not value > 0:
            raise DataError(f"style control: {FEATURES[column]} never differ between answers. Control less.")
    return (x - x.mean(axis=0)) / spread


# --- fits: (models + K,) log-odds of each model against the baseline, then the features' coefficients


def _fit_v01(battles: Battles, models: int, drawn: np.ndarray) -> np.ndarray:
    """Minimum of the penalised regression, by Newton's method; the baseline has a coefficient of its own.

    Every battle counts twice, a tie as a win for each side.
    """
    x = _design(battles, models, drawn, math.log(BASE))
    present = np.abs(x).max(axis=0) > 0
    share = battles.outcome[drawn]
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        expected = _sigmoid(x @ weights)
        slope = x.T @ (2 * (share - expected)) - weights
        curve = (x * (2 * expected * (1 - expected))[:, None]).T @ x + np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < TOLERANCE:
            break
    return _against_baseline(weights, present, models, math.log(BASE))


def _fit_v20(battles: Battles, models: int, drawn: np.ndarray) -> np.ndarray:
    x = torch.tensor(_design(battles, models, drawn, 1.0), dtype=torch.float32)
    outcome = torch.tensor(battles.outcome[drawn], dtype=torch.float32)
    weights = torch.full((x.shape[1],), START, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        lr=RATE,
        max_iter=TORCH_STEPS,
        tolerance_grad=TORCH_TOLERANCE,
        tolerance_change=TORCH_TOLERANCE,
    )

    @torch.no_grad()
    def closure() -> torch.Tensor:
        logits = x @ weights
        weights.grad = x.T @ (logits.sigmoid() - outcome)
        return binary_cross_entropy_with_logits(logits, outcome, reduction="sum")

    optimizer.step(closure)
    return _against_baseline(weights.detach().double().numpy(), x.abs().amax(dim=0).numpy() > 0, models, 1.0)


def _design(battles: Battles, models: int, drawn: np.ndarray, unit: float) -> np.ndarray:
    """(N, models + 1 + K): the model, the baseline with the other sign, the style."""
    x = np.zeros((len(drawn), models + 1 + battles.x.shape[1]))
    x[np.arange(len(drawn)), battles.owner[drawn]] = unit
    x[:, models] = -unit
    x[:, models + 1 :] = battles.x[drawn]
    return x


def _against_baseline(weights: np.ndarray, present: np.ndarray, models: int, unit: float) -> np.ndarray:
    """NaN for a model that was not drawn."""
    odds = np.where(present[:models], (weights[:models] - weights[models]) * unit, np.nan)
    return np.concatenate([odds, weights[models + 1 :]])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))
