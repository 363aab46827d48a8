"""The system text of a run, for prompts that have none: the same in training, sampling and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune.types import Example, Message


def with_system(examples: Sequence[Example], text: str | None) -> list[Example]:
    """The examples, with `text` as system message in front of the prompts that have none and say nothing of it."""
    if not text:
        return list(examples)
    message = Message("system", text)
    return [
        example
        if example.no_system or any(said.role == "system" for said in example.prompt)
        else replace(example, prompt=(message, *example.prompt))
        for example in examples
    ]
