"""From files to token groups: `load_preferences` reads, `tokenize_examples` encodes. Imports no transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from preftune.data.chat import ChatFormat, generation_prompt_ids, read_chat_format
from preftune.data.formats import ColumnMapping, recognise, to_examples
from preftune.data.sources import Row, load_rows
from preftune.data.tokenize import TokenizationReport, tokenize_examples
from preftune.types import Example, Layout

__all__ = [
    "ChatFormat",
    "ColumnMapping",
    "Row",
    "TokenizationReport",
    "generation_prompt_ids",
    "load_preferences",
    "load_rows",
    "read_chat_format",
    "recognise",
    "to_examples",
    "tokenize_examples",
]


def load_preferences(
    dataset: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    layout: Layout | str = Layout.PAIRED,
    columns: Mapping[str, str | None] | None = None,
) -> list[Example]:
    """Read preference files or folders, one after the other, as examples.

    Each path is recognised on its own, so files of different forms can stand in one list. `columns` maps the names in
    the files to known ones (see `preftune.data.formats`).

    Raises:
        DataError: a file or a row is wrong; the message names it.
        RecipeError: `layout` or `columns` is wrong.
    """
    paths = [dataset] if isinstance(dataset, str | Path) else list(dataset)
    return [example for path in paths for example in to_examples(load_rows(path, split), layout, columns)]
