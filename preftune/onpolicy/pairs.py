"""From scored answers to pairs that can be trained on: rows with a prompt, `responses` and `scores` in, and out

    train.jsonl, test.jsonl     prompt, chosen, rejected (as messages), chosen_score, rejected_score
    pairs-report.json           what was kept, what was left out and why, and how far length explains the choice

A prompt is a test prompt by a hash of its text, so that neither the order of the rows nor other rows move it. Nothing
is random but by that hash: the same file gives the same pairs.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from preftune.data import Row, load_rows
from preftune.data.bad_rows import BadRowError, Problem
from preftune.data.reader import RowReader
from preftune.errors import DataError, RecipeError
from preftune.onpolicy.choose import NoPairError, Rule
from preftune.onpolicy.pair_files import Format, PairFiles
from preftune.onpolicy.prompts import Prompt, to_prompt
from preftune.serve.score import read_responses, recognise_responses
from preftune.types import Example

log = logging.getLogger(__name__)

DUPLICATE = "the same pair again"
SCORES_REMEDY = "Score the answers with preftune annotate, or delete the row"


@dataclass(frozen=True)
class Pair:
    """A prompt whose example has the chosen and the rejected answer with their scores."""

    prompt: Prompt

    def to_row(self, weighted: bool) -> dict[str, Any]:
        """The columns that the data layer reads it by; a file with weights has one in every row."""
        example = self.prompt.example
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in example.responses)
        row = self.prompt.to_row() | {"chosen": chosen, "rejected": rejected}
        row |= {"chosen_score": example.scores[0], "rejected_score": example.scores[1]}
        if example.no_system:
            row["system"] = ""
        return row | {"weight": example.weight} if weighted else row


@dataclass
class _Tally:
    """What is counted while rows are read."""

    pairs: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    failed: int = 0
    repeated: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    spreads: list[float] = field(default_factory=list)


def make_pairs(
    file: str | Path,
    output: str | Path,
    *,
    rule: Rule | None = None,
    test_share: float = 0.05,
    seed: int = 42,
    format: Format = "jsonl",
    columns: Mapping[str, str | None] | None = None,
    split: str = "train",
) -> dict[str, Any]:
    """Write the pairs of `file` and their report, which is also returned.

    Args:
        file: rows with a prompt, a list of responses (or chosen and rejected) and `scores`, as annotate and score
            write them; null for an answer that has none.
        output: a folder, or FILE.jsonl or FILE.parquet for all pairs in one file; new or of an earlier call.
        test_share: of the prompts, which go into test; 0 with a single file.
        seed: of the split.
        format: of a folder.

    Raises:
        DataError: the file or a row is wrong, no pair is left, or `output` cannot be written.
        RecipeError: a setting is out of range.
    """
    rule = rule or Rule()
    if not 0 <= test_share < 1:
        raise RecipeError(f"'test_share' is {test_share:g}; expected a share of at least 0 and below 1.")
    read, written = Path(file).resolve(), Path(output).resolve()
    if written == read or written in read.parents:
        raise DataError(f"{output}: holds the file that is read, and would be replaced. Give another --output.")
    files = PairFiles(Path(output), format)
    if files.single and test_share:
        raise RecipeError(f"{output}: is one file, which cannot be split. Give a folder, or a test share of 0.")
    rows = load_rows(file, split)
    tally = _read(rows, rule, columns)
    if not tally.pairs:
        raise DataError(f"{file}: no pair is left of {len(rows)} rows ({_reasons(tally.dropped)}).")
    parts: dict[str, list[Pair]] = {"train": [], "test": []}
    for pair in tally.pairs:
        parts["test" if _draw(f"{seed} {pair.prompt.id}") < test_share else "train"].append(pair)
    if not parts["train"]:
        raise DataError(f"{file}: all {len(tally.pairs)} pairs fall into the test part. Give a smaller test share.")
    if test_share and not parts["test"]:
        log.warning("None of the %d prompts falls into the test part; there is no test file.", len(tally.pairs))
    report = _report(len(rows), tally, parts)
    weighted = any(pair.prompt.example.weight != 1 for pair in tally.pairs)
    files.write({name: [pair.to_row(weighted) for pair in pairs] for name, pairs in parts.items() if pairs}, report)
    return report


# --- rows


def _read(rows: Sequence[Row], rule: Rule, columns: Mapping[str, str | None] | None) -> _Tally:
    mapping = recognise_responses(rows, columns)
    tally = _Tally()
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for row in rows:
        reader = RowReader(row, mapping)
        try:
            example = read_responses(reader)
            scores = read_scores(reader, len(example.responses))
        except BadRowError as bad:
            raise DataError(str(bad)) from None
        pair = _count_and_choose(example, scores, rule, tally)
        if pair is None:
            continue
        key = (pair.prompt.id, pair.prompt.example.responses)
        if key in seen:
            tally.dropped[DUPLICATE] += 1
            continue
        seen.add(key)
        tally.pairs.append(pair)
    return tally


def read_scores(reader: RowReader, count: int) -> list[float | None]:
    """The row's scores, one for each response, None where it is null.

    Raises:
        BadRowError: there are none, too few or too many, or one is no finite number.
    """
    name, expected = reader.mapping.roles.get("scores", "scores"), f"a list of {count} numbers or nulls"
    if name not in reader.row.values:
        raise reader.unlike(None, f"'{name}'", expected, SCORES_REMEDY)
    values = reader.row.values[name]
    if not isinstance(values, list):
        raise reader.unlike(values, f"'{name}'", expected, SCORES_REMEDY)
    if len(values) != count:
        sentence = f"'{name}' holds {len(values)} scores for {count} responses"
        raise reader.wrong(Problem.WRONG_NUMBER, sentence, SCORES_REMEDY)
    return [
        None if value is None else reader.number(value, f"'{name}' item {place}", SCORES_REMEDY)
        for place, value in enumerate(values, 1)
    ]


def _count_and_choose(example: Example, scores: Sequence[float | None], rule: Rule, tally: _Tally) -> Pair | None:
    name, given = to_prompt(example).id, [score for score in scores if score is not None]
    tally.answers += len(scores)
    tally.failed += len(scores) - len(given)
    tally.repeated += len(scores) - len(set(example.responses))
    tally.prompts[name] += 1
    tally.spreads += [max(given) - min(given)] if len(given) > 1 else []
    try:
        chosen, rejected = rule.pair(example.responses, scores, name)
    except NoPairError as reason:
        tally.dropped[str(reason)] += 1
        return None
    assert chosen.score > rejected.score and chosen.text != rejected.text
    found = replace(example, responses=(chosen.text, rejected.text), scores=(chosen.score, rejected.score))
    return Pair(to_prompt(found))


def _draw(text: str) -> float:
    """A number in [0, 1) that is a function of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56


# --- the report


def _report(rows: int, tally: _Tally, parts: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """Lengths are in characters; `chosen_longer` is the share of pairs whose chosen answer is longer."""
    examples = [pair.prompt.example for pair in tally.pairs]
    lengths = [tuple(map(len, example.responses)) for example in examples]
    return {
        "rows": rows,
        "kept": len(examples),
        "train": len(parts["train"]),
        "test": len(parts["test"]),
        "dropped": dict(tally.dropped.most_common()),
        "answers": tally.answers,
        "answers_without_score": tally.failed,
        "answers_repeated": tally.repeated,
        "prompts_repeated": tally.prompts.total() - len(tally.prompts),
        "score_spread": _mean(tally.spreads),
        "margin": _mean([example.scores[0] - example.scores[1] for example in examples]),
        "chosen_score": _mean([example.scores[0] for example in examples]),
        "rejected_score": _mean([example.scores[1] for example in examples]),
        "chosen_length": _mean([chosen for chosen, _ in lengths]),
        "rejected_length": _mean([rejected for _, rejected in lengths]),
        "chosen_longer": _mean([float(chosen > rejected) for chosen, rejected in lengths]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
