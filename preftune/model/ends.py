"""The tokens that end an answer."""

from __future__ import annotations

from typing import Any

from preftune.data.chat import ChatFormat
from preftune.model.value_head import base_of


def ending_ids(model: Any, chat: ChatFormat) -> tuple[int, ...]:
    """The token that ended every response in training, and those that the model itself names."""
    named = base_of(model).generation_config.eos_token_id
    known = [chat.end_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(end for end in known if end is not None))
