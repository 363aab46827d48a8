"""Conversations written as one text: `Human: ... Assistant: ...`, or the JSON or Python literal of a list of messages.

A column is one of these when its first values all are; a lone answer that quotes such a dialogue stays an answer.

The Human/Assistant form is that of Anthropic's hh-rlhf (Bai et al. 2022, arXiv:2204.05862): turns that begin with a
blank line and their speaker. Chosen and rejected hold the whole conversation, the prompt is all before the last turn.
The blank line, the speaker and the whitespace around a turn are taken off. Two turns of one speaker in the history
(0.1 % of hh-rlhf) become one, a blank line between them, since chat templates want the speakers to alternate.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

from preftune.types import Message

SPEAKERS = {"Human": "user", "Hum": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Hum|Assistant):")
START = re.compile(r"\s*Human:")
LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")


def is_transcript(value: object) -> bool:
    return isinstance(value, str) and START.match(value) is not None and "\n\nAssistant:" in value


def is_written_list(value: object) -> bool:
    """Whether a text is a list of objects as json or Python prints it."""
    return isinstance(value, str) and LIST_OF_OBJECTS.match(value) is not None and read_written_list(value) is not None


def read_transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript; none where the text does not start with `Human:`."""
    if not START.match(text):
        return ()
    pieces = TURN.split("\n\n" + text.lstrip())[1:]
    turns = [
        Message(SPEAKERS[speaker], content.strip()) for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return (*_alternating(turns[:-1]), turns[-1])


def read_written_list(text: str) -> list[object] | None:
    """The list that a text spells out, None where it does not."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None


def _alternating(turns: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Message(turn.role, f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined
