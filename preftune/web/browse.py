"""A preference file as the page shows it: what was understood, rows with their scored tokens, lengths.

With a model the rows are read and encoded as a run does (`preftune.train.check`); without one they are texts.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from preftune.data import ColumnMapping, load_preferences, load_rows
from preftune.data.bad_rows import SkippedRows
from preftune.objectives import objective_class
from preftune.recipe import load_recipe
from preftune.serve.chat import HALF
from preftune.train.check import CheckReport, check_data
from preftune.train.tokenizer import load_run_tokenizer
from preftune.types import Example, Layout, TokenizedGroup
from preftune.web.form import read_columns

PAGE, COMPARED = 5, 1500  # rows of a page; pieces of a response up to which differences are looked for
BINS = 24  # of a histogram
Piece = tuple[str, bool]  # text, and whether it differs from the other response


@dataclass(frozen=True)
class Asked:
    """What to look at: `rows` from the beginning of the file; `model` is empty for texts alone."""

    file: str
    model: str
    objective: str
    rows: int
    max_length: int
    columns: str = ""


@dataclass
class Browser:
    """Keeps the file that was looked at last, so that turning a page is quick."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: tuple[Any, CheckReport | _Texts] | None = None

    def page(self, path: Path, asked: Asked, number: int) -> dict[str, Any]:
        """One page of rows, with what is known of all of them.

        Raises:
            PreftuneError: a run would stop at this file.
        """
        state = path.stat()
        key = (asked, state.st_mtime_ns, state.st_size)
        with self.lock:
            if self.seen is None or self.seen[0] != key:
                self.seen = (key, _look(path, asked))
            found = self.seen[1]
        return _of_report(found, number) if isinstance(found, CheckReport) else _of_texts(found, number)


@dataclass(frozen=True)
class _Texts:
    examples: list[Example]
    mapping: ColumnMapping
    skipped: SkippedRows
    names: tuple[str, ...]


def _look(path: Path, asked: Asked) -> CheckReport | _Texts:
    columns = read_columns(asked.columns) if asked.columns.strip() else None
    held = len(load_rows(path))  # a count above it would read rows twice
    dataset = f"{path}#{asked.rows}" if held > asked.rows else str(path)
    if asked.model:
        keys = {
            "model_name_or_path": asked.model,
            "dataset": dataset,
            "objective": asked.objective,
            "max_length": asked.max_length,
            "on_bad_row": "skip",
            "mixer_order": "head",
            "columns": columns,
        }
        recipe = load_recipe(None, keys)
        return check_data(recipe, *load_run_tokenizer(recipe))
    skipped: SkippedRows = SkippedRows()
    mappings: dict[str, ColumnMapping] = {}
    layout = objective_class(asked.objective).layout
    examples = load_preferences(
        dataset,
        layout=layout,
        columns=columns,
        on_bad_row="skip",
        skipped=skipped,
        mappings=mappings,
        mixer_order="head",
    )
    return _Texts(examples, next(iter(mappings.values())), skipped, _names(layout))


# --- with a model: tokens


def _of_report(report: CheckReport, number: int) -> dict[str, Any]:
    layout = report.recipe.build_objective().layout
    groups = report.groups[number * PAGE : (number + 1) * PAGE]
    responses = [[len(group.response_ids[k]) for group in report.groups] for k in _places(report.groups)]
    names = _names(layout)
    return {
        "unit": "tokens",
        "mapping": [str(mapping) for mapping in report.mappings.values()],
        "rows": report.tokens.rows,
        "left_out": report.dropped,
        "cut": report.tokens.rows_cut,
        "lengths": {name: _summary(one) for name, one in report.tokens.lengths.items()},
        "histogram": histogram(dict(zip(names, responses, strict=False))),
        "longer": None if report.survey.bias is None else report.survey.bias.share_longer,
        "warnings": report.warnings,
        "pages": -(-len(report.groups) // PAGE),
        "page": [_group(group, report.tokenizer, names) for group in groups],
    }


def _summary(one: Any) -> dict[str, float]:
    return {"mean": one.mean, "median": one.p50, "p90": one.p90, "p99": one.p99, "longest": one.max}


def _group(group: TokenizedGroup, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> dict[str, Any]:
    responses = [_texts_of(tokenizer, ids) for ids in group.response_ids]
    return {
        "row": group.origin.row,
        "prompt": [[text, False] for text in _texts_of(tokenizer, group.prompt_ids)],
        "responses": _named(differences(responses), names, [len(ids) for ids in group.response_ids], group.scores),
    }


def _texts_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """A text for each token; tokens that are parts of one character stand together.

    A token is decoded behind the one before it: some tokenizers drop a space at the beginning of a text.
    """
    texts = list[str]()
    start = read = 0
    for place in range(1, len(ids) + 1):
        before, text = _decoded(tokenizer, ids[start:read]), _decoded(tokenizer, ids[start:place])
        if (len(text) > len(before) and not text.endswith(HALF)) or place == len(ids):
            texts.append(text[len(before) :])
            start, read = read, place
    return texts


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""


# --- without one: texts


def _of_texts(found: _Texts, number: int) -> dict[str, Any]:
    examples = found.examples
    lengths = {"prompt": [sum(len(said.content) for said in example.prompt) for example in examples]}
    for k, name in enumerate(found.names[: max(len(example.responses) for example in examples)]):
        lengths[name] = [len(example.responses[k]) for example in examples if k < len(example.responses)]
    pairs = [example.responses for example in examples if len(example.responses) >= 2]
    longer = [len(pair[0]) > len(pair[-1]) or (len(pair[0]) == len(pair[-1])) / 2 for pair in pairs]
    return {
        "unit": "characters",
        "mapping": [str(found.mapping)],
        "rows": len(examples),
        "left_out": {str(problem): count for problem, count in found.skipped.counts.items()},
        "cut": 0,
        "lengths": {name: _percentiles(values) for name, values in lengths.items() if values},
        "histogram": histogram({name: values for name, values in lengths.items() if name != "prompt"}),
        "longer": sum(longer) / len(longer) if longer else None,
        "warnings": [],
        "pages": -(-len(examples) // PAGE),
        "page": [_example(example, found.names) for example in examples[number * PAGE : (number + 1) * PAGE]],
    }


def _example(example: Example, names: Sequence[str]) -> dict[str, Any]:
    words = [_words(response) for response in example.responses]
    lengths = [len(response) for response in example.responses]
    prompt = [[f"{said.role}: {said.content}\n", False] for said in example.prompt]
    return {
        "row": example.origin.row,
        "prompt": prompt,
        "responses": _named(differences(words), names, lengths, example.scores),
    }


def _words(text: str) -> list[str]:
    """Words with the space before them; a character each where there are no spaces."""
    pieces, word = list[str](), ""
    for letter in text:
        if letter.isascii() and letter.isalnum():
            word += letter
            continue
        if word.strip():
            pieces.append(word)
            word = ""
        word += letter
        if not letter.isspace():
            pieces.append(word)
            word = ""
    return [*pieces, word] if word else pieces


def _percentiles(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return {
        "mean": sum(ordered) / len(ordered),
        "median": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "longest": ordered[-1],
    }


# --- both


def differences(responses: Sequence[Sequence[str]]) -> list[list[Piece]]:
    """Mark what the first and the last response do not have in common; alone, nothing is marked."""
    if len(responses) < 2 or max(map(len, responses)) > COMPARED:
        return [[(text, False) for text in response] for response in responses]
    first, last = responses[0], responses[-1]
    same: tuple[set[int], set[int]] = (set(), set())
    for block in difflib.SequenceMatcher(None, first, last, autojunk=False).get_matching_blocks():
        same[0].update(range(block.a, block.a + block.size))
        same[1].update(range(block.b, block.b + block.size))
    marked = [[(text, False) for text in response] for response in responses]
    marked[0] = [(text, place not in same[0]) for place, text in enumerate(first)]
    marked[-1] = [(text, place not in same[1]) for place, text in enumerate(last)]
    return marked


def histogram(lengths: dict[str, list[int]]) -> dict[str, Any]:
    """Counts of equal bins up to the length that 99 of 100 responses stay below; the rest is in the last bin."""
    together = sorted(value for values in lengths.values() for value in values)
    if not together:
        return {"width": 1, "counts": {}}
    width = max(1, -(-(together[int(0.99 * (len(together) - 1))] + 1) // BINS))
    counts = {name: [0] * BINS for name, values in lengths.items() if values}
    for name, values in lengths.items():
        for value in values:
            counts[name][min(value // width, BINS - 1)] += 1
    return {"width": width, "counts": counts}


def _named(
    responses: Sequence[Sequence[Piece]], names: Sequence[str], lengths: Sequence[int], scores: Sequence[float]
) -> list[dict[str, Any]]:
    if len(responses) == 1 and scores:
        names = ["chosen" if scores[0] > 0 else "rejected"]
    return [
        {"name": names[k] if k < len(names) else f"rank {k}", "length": length, "pieces": pieces}
        for k, (pieces, length) in enumerate(zip(responses, lengths, strict=True))
    ]


def _names(layout: Layout) -> tuple[str, ...]:
    return ("chosen", "rejected") if layout is Layout.PAIRED else ("response",) if layout is not Layout.RANKED else ()


def _places(groups: Sequence[TokenizedGroup]) -> range:
    """Responses that every group has."""
    return range(min(len(group.response_ids) for group in groups))
