"""Model and tokenizer from a folder or a hub name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import ModelError

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str,
    *,
    torch_dtype: str | None = None,
    attn_implementation: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model.

    Args:
        name: a folder in transformers format, or a hub name.
        torch_dtype: precision of the weights in memory: float32 (also for None), bfloat16, float16, or auto (as saved).
        attn_implementation: the attention of ordinary forward passes and of the padded road; sdpa by default.
        revision: of a hub name.
        trust_remote_code: run Python code that comes with the model; never set by preftune itself.

    Raises:
        ModelError: nothing can be loaded from there; the message gives the cause in one line.
    """
    dtype = _dtype(torch_dtype)
    try:
        return AutoModelForCausalLM.from_pretrained(
            _checked(name),
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        raise ModelError(f"No model can be loaded from '{name}'{_hint(name)}: {_one_line(cause)}") from cause


def load_tokenizer(
    name: str, *, revision: str = "main", trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name. `chat_template` replaces its own: Jinja text or a path to it.

    Raises:
        ModelError: nothing can be loaded from there, or the template's file does not exist.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            _checked(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        raise ModelError(f"No tokenizer can be loaded from '{name}'{_hint(name)}: {_one_line(cause)}") from cause
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    return tokenizer


def _dtype(name: str | None) -> Any:
    if name in (None, "auto"):
        return name or torch.float32
    if name not in DTYPES:
        raise ModelError(f"'torch_dtype' must be one of auto, {', '.join(DTYPES)}, found {name!r}.")
    return DTYPES[name]


def _checked(name: str) -> str:
    """Refuse what is plainly a path and does not exist, before a hub is asked for it."""
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise ModelError(f"'{name}' is a file; give the folder that holds config.json and the weights.")
        if not any((path / file).exists() for file in ("config.json", "tokenizer.json", "tokenizer_config.json")):
            raise ModelError(f"'{name}' has no config.json: it is not a model folder in transformers format.")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"The folder '{name}' does not exist.")
    return name


def _template(text: str) -> str:
    if "{" in text:
        return text
    path = Path(text).expanduser()
    if not path.is_file():
        raise ModelError(f"'chat_template' must be Jinja text or a file; '{text}' is neither.")
    return path.read_text(encoding="utf-8")


def _hint(name: str) -> str:
    return "" if Path(name).exists() else " (there is no such folder, so it was asked for on the hub)"


def _one_line(cause: BaseException) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"[:400]


def disable_dropout(model: torch.nn.Module) -> int:
    """Set every dropout probability to 0, modules and attention alike; returns how many were above 0."""
    changed = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.p, changed = 0.0, changed + 1
        for name, value in vars(module).items():  # models that call F.dropout keep the probability as a number
            if ("dropout" in name or "layerdrop" in name) and isinstance(value, float) and value:
                setattr(module, name, 0.0)
                changed += 1
    return changed
