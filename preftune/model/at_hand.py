"""What is known of a model without loading its weights and without asking a hub.

In: its name, a folder or `owner/name`. Out: facts from its folder, or from what an earlier run left in the cache of
Hugging Face's libraries; None where there is neither.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from preftune.errors import ModelError
from preftune.model.memory import build_empty_model, load_config

# 8B, 0.5B, 0_5b, 360M, 8x7B: a number of its own in a name, not part of a word as in v2beta or 4bit.
_SIZE = re.compile(r"(?<![a-z0-9._])(?:(\d+)x)?(\d+(?:[._]\d+)?)(b|m)(?![a-z0-9])", re.I)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def folder_at_hand(name: str, revision: str = "main") -> Path | None:
    """The model's folder, or that of its files in the cache."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name of a hub
        return None
    return Path(found).parent if isinstance(found, str) else None


def parameters_at_hand(name: str, revision: str = "main", trust_remote_code: bool = False) -> int | None:
    """How many parameters it has, by its config; without one, what its name says (`Llama-3-8B`)."""
    folder = folder_at_hand(name, revision)
    config = None if folder is None else load_config(str(folder), trust_remote_code=trust_remote_code)
    if config is not None:
        try:
            return int(build_empty_model(config, trust_remote_code=trust_remote_code).num_parameters())
        except ModelError:
            pass
    return size_in_name(name)


def size_in_name(name: str) -> int | None:
    """Parameters by the last part of a name: 8 000 000 000 of `meta-llama/Meta-Llama-3-8B-Instruct`."""
    last = name.rstrip("/").rpartition("/")[2]
    sizes = [
        int(times or 1) * float(number.replace("_", ".")) * (1e9 if unit in "bB" else 1e6)
        for times, number, unit in _SIZE.findall(last)
    ]
    return int(max(sizes)) if sizes else None


def has_own_template(name: str, revision: str = "main") -> bool | None:
    """Whether its tokenizer brings a chat template, as those of chat models do and those of base models do not."""
    folder = folder_at_hand(name, revision)
    if folder is None:
        return None
    if any((folder / file).is_file() for file in _TEMPLATE_FILES):
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return bool(settings.get("chat_template")) if isinstance(settings, dict) else None
