"""The token groups of a recipe."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from preftune.data import TokenizationReport, class_balance, load_preferences, tokenize_examples
from preftune.data.decontaminate import Questions
from preftune.errors import RecipeError
from preftune.objectives.kto import KTO
from preftune.recipe import Recipe
from preftune.types import Example, Layout, Message, TokenizedGroup

logger = logging.getLogger(__name__)
MANY = 2000  # rows from which a bar is shown


def load_groups(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, dataset: str | Sequence[str] | Mapping[str, Any], split: str
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """The token groups of a recipe's dataset, and what was cut and left out.

    Raises:
        PreftuneError: the data or a setting of it is wrong.
    """
    objective = recipe.build_objective()
    own_set = split == "test" and recipe.eval_dataset is not None  # its splits are its own affair
    examples = load_preferences(
        dataset,
        split=split,
        layout=objective.layout,
        columns=recipe.columns,
        ranked_pairs=recipe.ranked_pairs,
        on_bad_row=recipe.on_bad_row,
        splits=None if own_set else recipe.dataset_splits,
        configs=None if own_set else recipe.dataset_configs,
        mixer_order=recipe.mixer_order,
        seed=recipe.training["seed"],
        test_split_size=recipe.test_split_size,
        catalog=recipe.dataset_catalog,
    )
    examples = with_system(examples, recipe.system_prompt)
    if objective.layout == Layout.UNPAIRED and split == "train":
        kto = next(part for part in getattr(objective, "objectives", (objective,)) if isinstance(part, KTO))
        logger.info("Classes: %s", class_balance(examples, kto.desirable_weight, kto.undesirable_weight))
    with Progress(transient=True, disable=len(examples) < MANY or not sys.stderr.isatty()) as bar:
        return tokenize_examples(
            examples,
            tokenizer,
            max_length=recipe.max_length,
            max_prompt_length=recipe.max_prompt_length,
            truncation=recipe.truncation,
            cut_response_end=recipe.cut_response_end,
            on_bad_row=recipe.on_bad_row or "error",
            dedupe=recipe.dedupe,
            decontaminate=_questions(recipe.decontaminate),
            tokenization=recipe.tokenization,
            num_proc=recipe.dataset_num_proc,
            cache=recipe.tokens_cache,
            progress=_shown(bar, len(examples)),
        )


def with_system(examples: Sequence[Example], text: str | None) -> list[Example]:
    """The examples, with `text` as system message in front of the prompts that have none."""
    if not text:
        return list(examples)
    message = Message("system", text)
    return [
        example
        if any(said.role == "system" for said in example.prompt)
        else replace(example, prompt=(message, *example.prompt))
        for example in examples
    ]


def _shown(bar: Progress, total: int) -> Callable[[int, int], None]:
    task = bar.add_task("tokens", total=total)
    return lambda done, rows: bar.update(task, completed=done, total=rows)


def _questions(files: str | Sequence[str] | None) -> Questions | None:
    """A question a line, or the prompts of a data file."""
    if files is None:
        return None
    texts: list[str] = []
    for name in [files] if isinstance(files, str) else files:
        path = Path(name).expanduser()
        if path.suffix == ".txt":
            if not path.is_file():
                raise RecipeError(f"'decontaminate': there is no file '{name}'.")
            texts += path.read_text(encoding="utf-8").splitlines()
        else:
            examples = load_preferences(name, layout=Layout.SINGLE, on_bad_row="skip")
            texts += [message.content for example in examples for message in example.prompt if message.role == "user"]
    return Questions(texts)
