"""The attention that was asked for, or what is used instead where it cannot run here.

`attn_implementation` names the attention of ordinary forward passes and of the padded road; packed rows have their own
(`preftune.model.attention`). Published recipes ask for flash attention, which needs a package and a GPU.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from transformers import utils

logger = logging.getLogger(__name__)


@cache  # one line in the log, however many models are loaded
def usable_attention(asked: str | None) -> str | None:
    """`asked`, or None (transformers' default for a model) and a line in the log."""
    if asked is None:
        return None
    problem = _problem(asked)
    if problem is None:
        return asked
    logger.warning(
        "attn_implementation %s: %s, so transformers' default is used instead (sdpa, or eager where a model has none).",
        asked,
        problem,
    )
    return None


def _problem(asked: str) -> str | None:
    if "/" in asked:  # a kernel from the hub
        if not utils.is_kernels_available():
            return "the package 'kernels' is not installed"
        return None if torch.cuda.is_available() else "there is no CUDA device"
    version = asked.removeprefix("flash_attention_")
    if version == asked or not version.isdigit():
        return None  # transformers' own, or a name that it refuses
    installed = getattr(utils, f"is_flash_attn_{version}_available", None)
    if installed is None or installed():
        return None
    return "flash-attn is not installed" if torch.cuda.is_available() else "there is no CUDA device"
