"""The data of a run without the rows of some lists, as a set that `preftune train` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.autopsy.examine import DROPS, Autopsy
from preftune.errors import DataError, RecipeError
from preftune.onpolicy.pair_files import PairFiles
from preftune.onpolicy.prompts import to_prompt
from preftune.train.data import load_examples
from preftune.types import Example


def write_clean(found: Autopsy, drop: Sequence[str], output: str | Path) -> dict[str, Any]:
    """Write what is left, and a report beside it, which is returned.

    Args:
        drop: never, flip (those that were right and end wrong), contradict, length.
        output: FILE.jsonl or FILE.parquet with the rows of training, or a folder with these and, where the run held
            rows of the same data out, with them as its test split.

    Raises:
        RecipeError: a word is not known.
        DataError: nothing would be left, the run read a stream, or it cannot be written there.
    """
    check_words(drop)
    if not found.examples:
        raise DataError(f"{found.run}: it read a stream, and rows cannot be left out of one. Train on files.")
    files = PairFiles(Path(output), "jsonl")
    counts: dict[str, int] = {}
    gone: set[int] = set()
    for word in dict.fromkeys(drop):
        places = {place for pair in found.lists[DROPS[word]] for place in found.places[found.pairs[pair].key]}
        counts[word] = len(places)
        gone |= places
    kept = [example for place, example in enumerate(found.examples) if place not in gone]
    if not kept:
        raise DataError(f"{found.run}: all {len(found.examples)} rows are on these lists. Drop fewer of them.")
    recipe = found.recipe
    parts = {"train": kept}
    if not files.single and recipe.evaluates and recipe.eval_dataset is None and not found.other_data:
        parts["test"] = load_examples(recipe, recipe.dataset, "test")
    report = {
        "run": str(found.run),
        "rows": len(found.examples),
        "kept": len(kept),
        "dropped": counts,
        **{name: len(part) for name, part in parts.items()},
    }
    files.write({name: to_rows(part) for name, part in parts.items()}, report)
    return report


def check_words(drop: Sequence[str]) -> None:
    """Raises:
    RecipeError: one of them names no list.
    """
    for word in drop:
        if word not in DROPS:
            raise RecipeError(f"--drop: expected a comma list of {', '.join(DROPS)}, found '{word}'.")


def to_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows in the columns that the data layer reads, the same in all; a file with weights or scores has them there."""
    weighted = any(example.weight != 1 for example in examples)
    paired = all(len(example.responses) == 2 for example in examples)
    return [_to_row(example, weighted, paired) for example in examples]


def _to_row(example: Example, weighted: bool, paired: bool) -> dict[str, Any]:
    row = to_prompt(example).to_row()
    if paired:
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in example.responses)
        row |= {"chosen": chosen, "rejected": rejected}
        row |= dict(zip(("chosen_score", "rejected_score"), example.scores, strict=False))
    else:
        row |= {"responses": list(example.responses)} | ({"scores": list(example.scores)} if example.scores else {})
    if example.no_system:
        row["system"] = ""
    return row | {"weight": example.weight} if weighted else row
