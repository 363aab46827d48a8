"""Arena-Hard's categories: the baseline of each, and what its judge is told.

    hard_prompt: {baseline: MODEL, system_prompt: TEXT}
    creative_writing: {baseline: MODEL, system_prompt: TEXT}

as YAML; arena-hard-auto has them as JUDGE_SETTINGS in utils/judge_utils.py, which is not part of preftune. Its files of
questions say which question is of which category.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import DataError
from preftune.evaluation.files import Rows, read_text

log = logging.getLogger(__name__)

QUESTION_FIELDS = ("uid", "category")


@dataclass(frozen=True)
class Category:
    """baseline: the model that the answers are held against. system: None where the judge's own file has it."""

    name: str
    baseline: str
    system: str | None = None


def load_categories(path: str | Path) -> dict[str, Category]:
    """Name -> category.

    Raises:
        DataError: the file is not such.
    """
    found = {}
    for name, entry in read_config(path).items():
        entry = entry if isinstance(entry, dict) else {}
        baseline, system = entry.get("baseline"), entry.get("system_prompt")
        if not isinstance(baseline, str) or not isinstance(system, str | None):
            raise DataError(f"{path}: {name!r}: expected 'baseline', a model's name, and 'system_prompt', a text; "
                            f"found {baseline!r} and {system!r}. Write both for each category.")  # fmt: skip
        found[str(name)] = Category(str(name), baseline, system)
    if not found:
        raise DataError(f"{path}: expected a 'baseline' and a 'system_prompt' by category, found none. Write them.")
    return found


def sort_questions(questions: Rows, categories: Mapping[str, Category]) -> dict[Any, Category]:
    """uid -> category. Questions of other categories are left out, and counted.

    Raises:
        DataError: a question is there twice, or none is of these categories.
    """
    found = {}
    others: Counter[str] = Counter()
    for row in questions:
        if row["uid"] in found:
            raise DataError(f"questions: uid {row['uid']!r} is there twice. Keep one of them.")
        if row["category"] in categories:
            found[row["uid"]] = categories[row["category"]]
        else:
            others[str(row["category"])] += 1
    if not found:
        raise DataError(f"questions: expected some of {', '.join(categories)}, found {', '.join(others)}. Give "
                        "--categories those of the questions.")  # fmt: skip
    if others:
        log.warning("%d of %d questions are of no category that is given (%s) and are left out.",
                    others.total(), len(questions), ", ".join(others))  # fmt: skip
    return found


def read_config(path: str | Path) -> dict[Any, Any]:
    """A YAML mapping; an empty one of any other content.

    Raises:
        DataError: it cannot be read, or is not YAML.
    """
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({str(error).splitlines()[0]}). Check that it is the file that is meant."
                        ) from None  # fmt: skip
    return config if isinstance(config, dict) else {}
