"""Configs of well-known models by their published shapes, for a plan where neither folder nor hub is at hand.

In: a name such as `meta-llama/Meta-Llama-3-8B-Instruct`. Out: a config with the sizes of `shapes.yaml`, or None.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PretrainedConfig


@cache
def published_shapes() -> dict[str, dict[str, Any]]:
    """All of them, by the beginning of a name."""
    return yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text(encoding="utf-8"))


def published_config(name: str) -> PretrainedConfig | None:
    """The config of a model by its name; None where its shape is not known here."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    fitting = [key for key in published_shapes() if last == key or last.startswith(f"{key}-")]
    if not fitting:
        return None
    shape = published_shapes()[max(fitting, key=len)]
    heads, shared = shape["heads"]
    return AutoConfig.for_model(
        shape["kind"],
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=shape.get("width", shape["hidden"] // heads),
        tie_word_embeddings=shape.get("tied", False),
    )
