"""AlpacaEval 2's length-controlled win rate: what the judge would prefer were both outputs of the same length.

    P(model wins on i) = σ( b_length · tanh(Δlength_i / sd) + b_difficulty · d_i + b_model )

fitted to the judge's preferences as published ("length_controlled_v1": L1, no intercept, liblinear, the strength chosen
of ten by five folds), together with two runs of the baseline that was told to be verbose and concise, at a tenth of the
weight; then read at Δlength = 0. d_i is the difficulty of question i, given as a file: `instruction_difficulty.csv`,
and the verbose and concise rows as `df_gamed.csv` (both of the hub's tatsu-lab/alpaca_eval). Dubois et al. 2024,
arXiv:2404.04475; the official package's glm_winrate.py.

**Joined by position**: d_i belongs to row i of the annotations, whatever its instruction. The published numbers of
models with fewer than 805 rows come out only so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.errors import DataError, MissingExtraError
from preftune.evaluation.alpaca_eval import preferences, standard_error
from preftune.evaluation.files import read_table, to_number

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

COLUMNS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
GAMED_WEIGHT = 0.2 / 2  # lambda 0.2, two gamed baselines
STRENGTHS, FOLDS, SEED = 10, 5, 123


@dataclass(frozen=True)
class Coefficients:
    """length: of tanh(Δlength / sd); difficulty; model: the bias. As the columns of the official weights file."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True)
class GamedRows:
    """The baseline's verbose and concise runs, all (R,). delta_lengths: baseline - run, over its deviation."""

    delta_lengths: np.ndarray
    difficulties: np.ndarray
    won: np.ndarray


@dataclass(frozen=True)
class LengthControlled:
    """Percent. predictions (R,): of each row at equal lengths; C: the strength, None where none was fitted."""

    length_controlled_winrate: float
    lc_standard_error: float
    coefficients: Coefficients
    C: float | None
    predictions: np.ndarray


def load_difficulties(path: str | Path) -> np.ndarray:
    """(N,) by the column `index`, or as they stand where there is none.

    Raises:
        DataError: the file is not such.
    """
    rows = read_table(path, ("instruction_difficulty",))
    found = np.array([to_number(row["instruction_difficulty"], f"{path} row {n}") for n, row in enumerate(rows, 1)])
    if not rows or "index" not in rows[0]:
        return found
    places = np.array([to_number(row["index"], f"{path} row {n}") for n, row in enumerate(rows, 1)])
    order = np.argsort(places)
    if not np.array_equal(places[order], np.arange(len(rows))):
        raise DataError(f"{path}: expected the column 'index' to count from 0 to {len(rows) - 1}.")
    return found[order]


def load_gamed(path: str | Path) -> GamedRows:
    """Of `df_gamed.csv`. Rows whose preference is empty are left out, as by the package.

    Raises:
        DataError: the file is not such.
    """
    names = ("std_delta_len", "instruction_difficulty", "preference")
    rows = [row for row in read_table(path, names) if row["preference"]]
    values = np.array([[to_number(row[name], f"{path} row {n}") for name in names] for n, row in enumerate(rows, 1)])
    if not len(values):
        raise DataError(f"{path}: expected rows with a preference, found none.")
    return GamedRows(*values.T)


def load_coefficients(path: str | Path) -> dict[str, Coefficients]:
    """Model name -> coefficients, of the official weights file.

    Raises:
        DataError: the file is not such.
    """
    rows = read_table(path, COLUMNS)
    name = next(iter(rows[0])) if rows else ""
    return {
        row[name]: Coefficients(*(to_number(row[column], f"{path} {row[name]}") for column in COLUMNS)) for row in rows
    }


def controlled(coefficients: Coefficients, difficulties: np.ndarray, C: float | None = None) -> LengthControlled:
    """The win rate of given coefficients over these questions (of a model with fewer rows: the first of them)."""
    predictions = _sigmoid(coefficients.difficulty * difficulties + coefficients.model)
    return LengthControlled(
        100 * float(predictions.mean()), 100 * standard_error(predictions), coefficients, C, predictions
    )


def against(model: Coefficients, other: Coefficients, difficulties: np.ndarray) -> LengthControlled:
    """The length-controlled win rate of one model over another, by the difference of their coefficients."""
    return controlled(
        Coefficients(model.length - other.length, model.difficulty - other.difficulty, model.model - other.model),
        difficulties,
    )


def fit(
    annotations: Sequence[Mapping[str, Any]],
    difficulties: np.ndarray | None,
    gamed: GamedRows | None,
    *,
    C: float | None = None,
    name: str = "annotations",
) -> LengthControlled:
    """Fit the three coefficients to a model's annotations, and read the win rate at equal lengths.

    Args:
        annotations: rows in their official order; unjudged ones are predicted and not fitted to.
        difficulties: by position; None is the minimal variant (no difficulty term), for other questions or baselines.
        gamed: the verbose and concise rows; None leaves them out.
        C: the strength; None chooses it by the folds.
        name: of the annotations, for messages.

    Raises:
        DataError: a row is wrong, there are more rows than difficulties, or all outputs differ by the same length.
        MissingExtraError: scikit-learn is not installed.
    """
    won = preferences(annotations, name)
    rows = len(won)
    if all(row.get("generator_1") == row.get("generator_2") is not None for row in annotations):  # the baseline itself
        return controlled(Coefficients(0.0, 0.0, 0.0), np.zeros(rows))
    if difficulties is not None and rows > len(difficulties):
        raise DataError(f"{name}: {rows} rows, but {len(difficulties)} difficulties, which are of the 805 questions of "
                        "AlpacaEval. For other questions take the minimal variant.")  # fmt: skip
    own = np.zeros(rows) if difficulties is None else difficulties[:rows]
    features = np.stack([np.tanh(delta_lengths(annotations, name)), own, np.ones(rows)], axis=1)
    weights = np.ones(rows)
    judged = np.isfinite(won)
    train, labels = features[judged], won[judged]
    weights = weights[judged]
    if gamed is not None:
        zeros = np.zeros(len(gamed.won))
        harder = zeros if difficulties is None else gamed.difficulties
        baseline = np.stack([np.tanh(gamed.delta_lengths), harder, zeros], axis=1)
        train, labels = np.concatenate([baseline, train]), np.concatenate([gamed.won, labels])
        weights = np.concatenate([np.full(len(gamed.won), GAMED_WEIGHT), weights])
    used = [0, 1, 2] if difficulties is not None else [0, 2]
    model, strength = _regression(train[:, used], labels, weights, C, name)
    found = dict(zip(used, model.coef_[0].tolist(), strict=True))
    return controlled(Coefficients(found[0], found.get(1, 0.0), found[2]), own, strength)


def delta_lengths(annotations: Sequence[Mapping[str, Any]], name: str = "annotations") -> np.ndarray:
    """(R,) characters of the baseline's output minus the model's, over the standard deviation; not centred.

    Raises:
        DataError: an output is no text, or there is nothing to divide by.
    """
    for number, row in enumerate(annotations, 1):
        if not isinstance(row["output_1"], str) or not isinstance(row["output_2"], str):
            raise DataError(f"{name} row {number}: expected texts in output_1 and output_2.")
    delta = np.array([len(row["output_1"]) - len(row["output_2"]) for row in annotations], dtype=float)
    deviation = delta.std(ddof=1) if len(delta) > 1 else 0.0
    if deviation == 0:
        raise DataError(f"{name}: all {len(delta)} pairs of outputs differ by the same length, so length has no effect "
                        "that could be removed. Report the plain win rate.")  # fmt: skip
    return delta / deviation


def is_extreme(plain: float, length_controlled: float) -> bool:
    """Whether the fit is doubtful by the package's rule: it moved the win rate by 10 points and by a quarter."""
    too_small = length_controlled < min(plain - plain / 4, plain - 10)
    too_large = length_controlled > max(plain + (100 - plain) / 4, plain + 10)
    return bool(too_small or too_large)


def _regression(
    features: np.ndarray, won: np.ndarray, weights: np.ndarray, C: float | None, name: str
) -> tuple[LogisticRegression, float]:
    """Soft labels as two rows each: won with weight p, lost with weight 1 - p; both in the same fold."""
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
        from sklearn.metrics import make_scorer
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise MissingExtraError("The length-controlled win rate", "eval") from None
    twice = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(won))
    shares = np.concatenate([won, 1 - won])
    row_weights = np.concatenate([weights, weights])
    settings = {"solver": "liblinear", "dual": False, "fit_intercept": False, "random_state": SEED}
    if C is not None:
        fixed = LogisticRegression(l1_ratio=1.0, C=C, **settings)
        return fixed.fit(twice, labels, sample_weight=shares * row_weights), C
    if len(won) < FOLDS:
        raise DataError(f"{name}: {len(won)} judged rows; the strength of the length control is chosen by {FOLDS} "
                        "folds. Judge more, or give the strength.")  # fmt: skip
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        chosen = LogisticRegressionCV(
            Cs=STRENGTHS,
            l1_ratios=(1.0,),
            cv=GroupKFold(n_splits=FOLDS),
            scoring=scorer.set_score_request(share=True, row_weight=True),
            use_legacy_attributes=False,
            **settings,
        ).set_fit_request(sample_weight=True)
        groups = np.tile(np.arange(len(won)), 2)
        chosen.fit(
            twice, labels, sample_weight=shares * row_weights, groups=groups, share=shares, row_weight=row_weights
        )
    return chosen, float(np.ravel(chosen.C_)[0])


def _log_loss(outcome: np.ndarray, predicted: np.ndarray, share: np.ndarray, row_weight: np.ndarray) -> float:
    """Of the probability that a row's model won, which is its share or one minus it; a mean over rows, as published."""
    won = np.where(outcome == 1, share, 1 - share)
    predicted = np.clip(predicted, 1e-15, 1 - 1e-15)
    return -float(np.mean(row_weight * (won * np.log(predicted) + (1 - won) * np.log(1 - predicted))))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
