"""What `PreferenceTrainer` is given from Python, made ready: data sets as token groups, arguments with a folded batch.

In: a `datasets.Dataset` or a list of rows, in the forms that files have (`preftune.data.formats`), TRL's among them:
prompt, chosen, rejected as text or messages; chosen and rejected as whole conversations; prompt, completion, label;
prompt, completions with ranks or scores; messages. Rows are named by their number in error messages.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from preftune.data import Row, to_examples, tokenize_examples
from preftune.errors import RecipeError
from preftune.objectives.base import Objective
from preftune.train.arguments import PreferenceArguments
from preftune.types import Origin, TokenizedGroup

logger = logging.getLogger(__name__)


def to_groups(
    dataset: Any, name: str, objective: Objective, tokenizer: PreTrainedTokenizerBase | None, **limits: Any
) -> Any:
    """Token groups of a data set, or of each of a mapping of them; token groups, and None, as they are.

    Args:
        name: of the argument, for error messages.
        limits: `max_length` and what else `preftune.data.tokenize_examples` takes.

    Raises:
        PreftuneError: there is no tokenizer, or a row is wrong.
    """
    if dataset is None or not is_raw(dataset):
        return dataset
    if isinstance(dataset, Mapping):
        return {key: to_groups(rows, f"{name}.{key}", objective, tokenizer, **limits) for key, rows in dataset.items()}
    if tokenizer is None:
        raise RecipeError(f"'{name}' holds text, and no tokenizer is given. Pass processing_class=tokenizer.")
    rows = [Row(dict(values), Origin(name, "train", number)) for number, values in enumerate(dataset, start=1)]
    if not rows:
        raise RecipeError(f"'{name}' holds no rows.")
    groups, report = tokenize_examples(to_examples(rows, objective.layout), tokenizer, **limits)
    logger.info("%s: %s", name, report)
    return groups


def is_raw(dataset: Any) -> bool:
    """Whether it holds rows of text, and no token groups."""
    if isinstance(dataset, Mapping):
        return any(is_raw(rows) for rows in dataset.values())
    if hasattr(dataset, "column_names"):
        return True
    first = dataset[0] if isinstance(dataset, Sequence) and len(dataset) else None
    return isinstance(first, Mapping) and not isinstance(first, TokenizedGroup)


def to_arguments(args: TrainingArguments) -> PreferenceArguments:
    """The arguments with the batch folded, which makes one item of the loader an optimizer step.

    Of a subclass, such as a config of TRL, only the fields of `TrainingArguments` are taken: what it says of the loss
    is said with `objective`.
    """
    if isinstance(args, PreferenceArguments):
        return args
    shared = {field.name for field in fields(TrainingArguments) if field.init}
    own = [field.name for field in fields(args) if field.name not in shared]
    if own:
        logger.info("%s: only the fields of TrainingArguments are read, not %s ...", type(args).__name__, own[0])
    values = {name: getattr(args, name) for name in shared if name != "local_rank"}
    return PreferenceArguments(**values)
