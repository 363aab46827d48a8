"""What the measures of an experiment read, looked at before anything trains.

A recipe's held-out rows (`eval_dataset`, of whatever form and number) become one file in the columns that every verb
reads: prompt, chosen, rejected for the likelihood, prompt and response for the health.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.data import load_preferences
from preftune.errors import RecipeError
from preftune.recipe import Recipe
from preftune.types import Example, Layout, Message

# The keys of a recipe that decide which rows are held out, and how they are read.
_KEYS = ("eval_dataset", "columns", "ranked_pairs", "on_bad_row", "mixer_order", "dataset_catalog", "seed")


def held_out_file(recipe: Recipe, layout: Layout, folder: Path) -> Path:
    """Where the held-out rows of a recipe are for its measures.

    Raises:
        RecipeError: it has no set of them.
    """
    if recipe.eval_dataset is None:
        raise RecipeError(
            "The measures 'likelihood' and 'health' are of held-out rows in a set of their own, and there is none. "
            "Set eval_dataset; for health --text names other rows."
        )
    values = recipe.to_dict()
    said = json.dumps([values[key] for key in _KEYS], sort_keys=True, default=str)
    return folder / f"held-out-{layout.value}-{hashlib.sha256(said.encode()).hexdigest()[:8]}.jsonl"


def write_held_out(recipes: Sequence[Recipe], layouts: Sequence[Layout], folder: Path) -> None:
    """Write those of these files that are not there yet: all of them, or none.

    Raises:
        PreftuneError: the rows cannot be read in this layout.
    """
    wanted = {held_out_file(recipe, layout, folder): (recipe, layout) for recipe in recipes for layout in layouts}
    read = {path: _read(*source) for path, source in wanted.items() if not path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    for path, examples in read.items():
        part = path.with_suffix(".part")
        rows = (json.dumps(_to_row(example), ensure_ascii=False) + "\n" for example in examples)
        part.write_text("".join(rows), encoding="utf-8")
        part.replace(path)


def check_inputs(prompts: str | None, text: str | None) -> None:
    """Look at the rows that the command names, which are read after the training.

    Raises:
        PreftuneError: they cannot be read as prompts, or as rows with answers.
    """
    if prompts is not None:
        load_preferences([prompts], layout=Layout.PROMPT)
    if text is not None:
        load_preferences([text], split=split_of(text), layout=Layout.SINGLE)


def split_of(data: str) -> str:
    """A file has one split, which is called train."""
    return "train" if Path(data).is_file() else "test"


def _read(recipe: Recipe, layout: Layout) -> list[Example]:
    assert recipe.eval_dataset is not None
    return load_preferences(
        recipe.eval_dataset,
        split="test",
        layout=layout,
        columns=recipe.columns,
        ranked_pairs=recipe.ranked_pairs,
        on_bad_row=recipe.on_bad_row,
        mixer_order=recipe.mixer_order,
        seed=recipe.training["seed"],
        catalog=recipe.dataset_catalog,
    )


def _to_row(example: Example) -> dict[str, Any]:
    names = ("chosen", "rejected") if len(example.responses) == 2 else ("response",)
    answers = [[_to_chat(Message("assistant", text))] for text in example.responses]
    row = {"prompt": list(map(_to_chat, example.prompt)), **dict(zip(names, answers, strict=True))}
    if example.tools:
        row["tools"] = json.loads(example.tools)
    return row | {"system": ""} if example.no_system else row


def _to_chat(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = json.loads(message.tool_calls)
    return said | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}
