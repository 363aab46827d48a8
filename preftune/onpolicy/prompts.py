"""The prompts of any preference or prompt file, each once, with a name that is a function of its text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data import load_preferences
from preftune.data.bad_rows import OnBadRow
from preftune.data.system import with_system
from preftune.types import Example, Layout, Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends before the answer. `id` is a hash of its messages and tools."""

    id: str
    example: Example

    def to_row(self) -> dict[str, Any]:
        """The columns that the data layer reads it by."""
        row: dict[str, Any] = {"prompt_id": self.id, "prompt": [_to_chat(turn) for turn in self.example.prompt]}
        return row | {"tools": json.loads(self.example.tools)} if self.example.tools else row


def load_prompts(
    sources: Sequence[str | Path],
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    on_bad_row: OnBadRow | None = None,
    system: str | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """The prompts of the sources in their order; one that comes again is left out, as its answers would be the same.

    Args:
        sources: what `load_preferences` reads, rows with or without answers.
        system: a system text for those that have none and do not say that they want none.
        limit: the first so many.

    Raises:
        PreftuneError: a source or a row is wrong.
    """
    names = [str(source) for source in sources]
    examples = load_preferences(
        names, split=split, layout=Layout.PROMPT, columns=columns or None, on_bad_row=on_bad_row
    )
    prompts: dict[str, Prompt] = {}
    for example in with_system(examples, system):
        prompt = to_prompt(example)
        prompts.setdefault(prompt.id, prompt)
    if len(prompts) < len(examples):
        logger.info("%d of %d prompts come again and are answered once.", len(examples) - len(prompts), len(examples))
    return list(prompts.values())[:limit]


def to_prompt(example: Example) -> Prompt:
    said = json.dumps([[_to_chat(turn) for turn in example.prompt], example.tools], ensure_ascii=True, sort_keys=True)
    return Prompt(hashlib.blake2b(said.encode(), digest_size=8).hexdigest(), example)


def _to_chat(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = json.loads(message.tool_calls)
    return said | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}
