"""The token groups of a recipe."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from preftune.data import TokenizationReport, class_balance, load_preferences, load_rows, tokenize_examples
from preftune.data.bad_rows import SkippedRows
from preftune.data.columns import ColumnMapping
from preftune.data.decontaminate import Questions, asked_in
from preftune.data.preferences import bad_row_rule
from preftune.data.system import with_system
from preftune.errors import DataError, RecipeError
from preftune.objectives.kto import KTO
from preftune.recipe import Recipe
from preftune.recipe.guards import template_guard
from preftune.train.tokenizer import check_same_prompts
from preftune.types import Example, Layout, TokenizedGroup

logger = logging.getLogger(__name__)
MANY = 2000  # rows from which a bar is shown


def load_groups(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, dataset: str | Sequence[str] | Mapping[str, Any], split: str
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """The token groups of a recipe's dataset, and what was cut and left out.

    Raises:
        PreftuneError: the data or a setting of it is wrong.
    """
    examples = load_examples(recipe, dataset, split)
    if split == "train":
        look_at(recipe, tokenizer, examples)
    return tokenize_for(recipe, tokenizer, examples)


def load_examples(
    recipe: Recipe,
    dataset: str | Sequence[str] | Mapping[str, Any],
    split: str,
    *,
    skipped: SkippedRows | None = None,
    mappings: dict[str, ColumnMapping] | None = None,
) -> list[Example]:
    """The examples of a recipe's dataset; `skipped` and `mappings` as for `load_preferences`.

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
        skipped=skipped,
        mappings=mappings,
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
    return examples


def look_at(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
    """What must hold of tokenizer and examples before a run, and what is better known.

    Raises:
        ModelError: prompts would not be sampled from as they are trained on.
    """
    several = any(sum(message.role == "user" for message in example.prompt) > 1 for example in examples)
    plain = template_guard(bool(tokenizer.chat_template), several)
    if plain is not None:
        logger.warning(plain)
    if recipe.tokenization == "preftune":
        check_same_prompts(examples, tokenizer)


def tokenize_for(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """The token groups of examples by the settings of a recipe, and what was cut and left out.

    Raises:
        PreftuneError: a row or a setting is wrong, or no row is left.
    """
    rule = recipe.on_bad_row or bad_row_rule(
        recipe.dataset, recipe.dataset_configs, recipe.dataset_splits, recipe.dataset_catalog
    )
    with Progress(transient=True, disable=len(examples) < MANY or not sys.stderr.isatty()) as bar:
        groups, report = tokenize_examples(
            examples,
            tokenizer,
            max_length=recipe.max_length,
            max_prompt_length=recipe.max_prompt_length,
            truncation=recipe.truncation,
            cut_response_end=recipe.cut_response_end,
            on_bad_row=rule,
            dedupe=recipe.dedupe,
            decontaminate=benchmark_questions(recipe.decontaminate),
            tokenization=recipe.tokenization,
            num_proc=recipe.dataset_num_proc,
            cache=recipe.tokens_cache,
            progress=_shown(bar, len(examples)),
        )
    if not groups:
        reasons = "; ".join(f"{len(rows)} {reason}" for reason, rows in report.dropped.items())
        raise DataError(
            f"{examples[0].origin}: this is the first of {len(examples)} rows, which are all left out "
            f"({reasons}). Raise max_length, or choose another truncation."
        )
    return groups, report


def _shown(bar: Progress, total: int) -> Callable[[int, int], None]:
    task = bar.add_task("tokens", total=total)
    return lambda done, rows: bar.update(task, completed=done, total=rows)


def benchmark_questions(files: str | Sequence[str] | None) -> Questions | None:
    """A question a line, or the questions of a data file."""
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
            texts += _asked(name)
    return Questions(texts)


def _asked(name: str) -> list[str]:
    """The questions of a data file: the user's turns where its rows have answers, else its column of questions."""
    try:
        examples = load_preferences(name, layout=Layout.SINGLE, on_bad_row="skip")
    except DataError:
        path = Path(name).expanduser()
        texts = [text for row in load_rows(path) for text in asked_in(row.values)] if path.exists() else []
        if not texts:
            raise
        return texts
    return [message.content for example in examples for message in example.prompt if message.role == "user"]
