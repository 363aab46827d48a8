"""Scores of judged files, as the rows that `preftune eval ... score` prints: one annotator, one kind of table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.evaluation import arena_hard, mt_bench
from preftune.evaluation.alpaca_eval import ANNOTATION_FIELDS, average_length, win_rate
from preftune.evaluation.arena_style import Control, model_of, score_with_style
from preftune.evaluation.files import read_rows
from preftune.evaluation.judge import OFFICIAL_ANNOTATOR
from preftune.evaluation.length_control import fit, is_extreme, load_difficulties, load_gamed


def alpaca_eval_table(
    annotations: str | Path,
    *,
    outputs: str | Path | None = None,
    difficulties: str | Path | None = None,
    gamed: str | Path | None = None,
    minimal: bool = False,
    C: float | None = None,
) -> dict[str, Any]:
    """The figures of one model, by their official names.

    Args:
        annotations: an annotations.json.
        outputs: its model_outputs.json, for the average length; else the annotated outputs are taken.
        difficulties, gamed: the two files of the published length control; both or none.
        minimal: length control without them.
        C: the strength of the fit; None chooses it.

    Raises:
        DataError: a file is wrong, annotators are mixed, or the length control is of another annotator.
        MissingExtraError: length control without the 'eval' extra.
    """
    rows = read_rows(annotations, ANNOTATION_FIELDS)
    annotator = _only(rows, "annotator", annotations)
    figures = asdict(win_rate(rows, str(annotations)))
    lengths = read_rows(outputs, ("output",)) if outputs else [{"output": row["output_2"]} for row in rows]
    table = {
        "model": _only(rows, "generator_2", annotations),
        "baseline": _only(rows, "generator_1", annotations),
        "annotator": annotator,
        **figures,
        "n_null": len(rows) - figures["n_total"],
        "avg_length": average_length(lengths, str(outputs or annotations)),
    }
    if (difficulties is None) != (gamed is None):
        raise DataError("The published length control needs both files, --difficulties and --gamed; found one of them.")
    if difficulties is not None and gamed is not None:
        if annotator not in (OFFICIAL_ANNOTATOR, None):
            raise DataError(f"{annotations}: judged by {annotator!r}, but difficulties and gamed rows are of "
                            f"{OFFICIAL_ANNOTATOR}. Take --minimal for another judge.")  # fmt: skip
        found = fit(rows, load_difficulties(difficulties), load_gamed(gamed), C=C, name=str(annotations))
    elif minimal:
        found = fit(rows, None, None, C=C, name=str(annotations))
    else:
        return table
    return table | {
        "length_controlled_winrate": found.length_controlled_winrate,
        "lc_standard_error": found.lc_standard_error,
        "lc_variant": "minimal" if minimal else "length_controlled_v1",
        "lc_C": found.C,
        "lc_coefficients": asdict(found.coefficients),
        "lc_doubtful": is_extreme(figures["win_rate"], found.length_controlled_winrate),
    }


def arena_hard_table(
    judgments: Sequence[str | Path],
    version: arena_hard.Version,
    *,
    control: Control | None = None,
    answers: Sequence[str | Path] = (),
    baseline: Sequence[str | Path] = (),
) -> list[dict[str, Any]]:
    """Best first. v0.1 pools the battles of all files for its intervals; v2.0 scores each category by itself.

    Args:
        control: the style that is taken out, by the answers of the models and of each category's baseline.

    Raises:
        DataError: a file is wrong, judges or baselines are mixed, or a judgment of v2.0 is of no category.
    """
    name = ", ".join(map(str, judgments))
    rows = [row for path in judgments for row in read_rows(path, ("model", "games"))]
    judge = _only(rows, "judge", name)
    if version == "v2.0" and any(row.get("category") is None for row in rows):
        raise DataError(f"{name}: v2.0 scores each category by itself, and there are judgments without a 'category'. "
                        "Judge them with --questions and --categories.")  # fmt: skip
    kinds = list(dict.fromkeys(row["category"] for row in rows)) if version == "v2.0" else [None]
    table = []
    for kind in kinds:
        own = [row for row in rows if version == "v0.1" or row["category"] == kind]
        base = _only(own, "baseline", name)
        head = {"judge": judge, "version": version} | ({} if kind is None else {"category": kind})
        scores, style = _arena_scores(own, version, control, answers, baseline, base)
        best = sorted(scores.items(), key=lambda item: -item[1].score)
        table += [{"model": model, **head, **asdict(found), **style} for model, found in best]
    return table


def _arena_scores(
    rows: Sequence[dict[str, Any]],
    version: arena_hard.Version,
    control: Control | None,
    answers: Sequence[str | Path],
    baseline: Sequence[str | Path],
    base: str | None,
) -> tuple[dict[str, arena_hard.ArenaScore], dict[str, Any]]:
    """The scores, and what was controlled. base: the baseline's name, where the judgments say it."""
    if control is None:
        return arena_hard.score(rows, version), {}
    if not answers or not baseline:
        raise DataError("Style control reads the answers. Give those of the models and of the baseline.")
    given = [row for path in answers for row in read_rows(path)]
    theirs = [row for path in baseline for row in read_rows(path) if base in (None, model_of(row))]
    if not theirs:
        raise DataError(
            f"baseline: expected the answers of {base!r}, as judged, found none. Give --baseline their file too."
        )
    found = score_with_style(rows, given, theirs, version, control)
    return found.scores, {"style": control, "style_coefficients": found.coefficients, "length_unit": found.unit}


def mt_bench_table(judgments: Sequence[str | Path], questions: str | Path | None = None) -> list[dict[str, Any]]:
    """Best first; with the questions by category too.

    Raises:
        DataError: a file is wrong, or judges are mixed.
    """
    rows = [row for path in judgments for row in read_rows(path, ("question_id", "model", "score", "turn"))]
    judge = _only(_first_judges(rows), "judge", ", ".join(map(str, judgments)))
    kinds = None
    if questions is not None:
        kinds = {row["question_id"]: row["category"] for row in read_rows(questions, ("question_id", "category"))}
    scores = sorted(mt_bench.score(rows, kinds).items(), key=lambda item: -item[1].score)
    return [{"model": model, "judge": judge, **asdict(found)} for model, found in scores]


def mt_bench_pairs_table(judgments: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Best first, of games between two models in both orders.

    Raises:
        DataError: a file is wrong, or judges are mixed.
    """
    needs = ("model_1", "model_2", "g1_winner", "g2_winner")
    rows = [row for path in judgments for row in read_rows(path, needs)]
    judge = _only(_first_judges(rows), "judge", ", ".join(map(str, judgments)))
    found = sorted(mt_bench.score_pairs(rows).items(), key=lambda item: -item[1].win_rate_adjusted)
    return [
        {
            "model": model,
            "judge": judge,
            **asdict(own),
            "win_rate": own.win_rate,
            "loss_rate": own.loss_rate,
            "win_rate_adjusted": own.win_rate_adjusted,
        }
        for model, own in found
    ]


def _first_judges(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """FastChat's is a list of the judge and its prompt; the judge alone."""
    named = [row.get("judge") for row in rows]
    return [{"judge": name[0] if isinstance(name, list) and name else name} for name in named]


def _only(rows: Sequence[dict[str, Any]], field: str, name: str | Path) -> Any:
    """The one value of a field; numbers of several judges, baselines or models do not belong into one figure."""
    values = list(dict.fromkeys(str(row[field]) if row.get(field) is not None else None for row in rows))
    if len(values) > 1:
        raise DataError(f"{name}: expected one {field}, found {len(values)}: {', '.join(map(str, values[:3]))}. Score "
                        "them apart.")  # fmt: skip
    return values[0]
