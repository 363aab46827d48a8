"""Value-head files: the score head of a reward model, beside weights or an adapter.

In the form of TRL's value heads: the tensors v_head.summary.weight (1, D) and v_head.summary.bias (1,) in
`value_head.safetensors`, or in the pickle `value_head.bin`, which is written only when asked for.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import ModelError
from preftune.model.load import one_line

logger = logging.getLogger(__name__)

HEAD = "score"  # what transformers calls the head of a decoder that rates or classifies sequences
FILES = {"safetensors": "value_head.safetensors", "bin": "value_head.bin"}
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


@dataclass(frozen=True)
class ValueHead:
    """weight (1, D), bias (1,)."""

    weight: Tensor
    bias: Tensor


def head_of(model: Any) -> nn.Linear:
    """The score head; under PEFT the copy that is trained.

    Raises:
        ModelError: the model has no linear head of one label named `score`.
    """
    base = base_of(model)
    head = getattr(base, HEAD, None)
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save[head.active_adapters[0]]
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(
            f"{type(base).__name__} has no linear '{HEAD}' head with one output: it is not a decoder that rates "
            "sequences, which is what can be trained here."
        )
    return head


def set_value_head(model: Any, value_head: ValueHead) -> None:
    """Put the numbers of a value-head file into the model's head.

    Raises:
        ModelError: the hidden sizes differ.
    """
    head = head_of(model)
    if value_head.weight.shape[1] != head.in_features:
        found = value_head.weight.shape[1]
        raise ModelError(f"The value head reads {found} numbers a token, the model has {head.in_features}.")
    with torch.no_grad():
        head.weight.copy_(value_head.weight)
    if value_head.bias.item():
        head.bias = nn.Parameter(value_head.bias.to(head.weight))
        logger.info(
            "The value head's bias, %.4g, is added to every score. A sequence-classification model has none: saved as "
            "one, it gives scores without it.",
            value_head.bias.item(),
        )


def save_value_head(model: Any, folder: str | Path, format: str = "safetensors") -> Path:
    """Write the head of `model` as a value-head file into `folder`, and return its path.

    Args:
        format: `safetensors`, or `bin` for tools that read a pickle.

    Raises:
        ModelError: the model has no score head, or the format is not known.
    """
    if format not in FILES:
        raise ModelError(f"A value head is saved as {' or '.join(FILES)}, found {format!r}.")
    head = head_of(model)
    bias = head.bias if head.bias is not None else head.weight.new_zeros(1)
    tensors = {WEIGHT: head.weight, BIAS: bias}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path = Path(folder) / FILES[format]
    if format == "bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    return path


def load_value_head(folder: str | Path) -> ValueHead:
    """Read `value_head.safetensors`, or `value_head.bin` where there is no such file, as tensors alone.

    Raises:
        ModelError: there is no such file, or it does not hold one linear layer with one output.
    """
    path = value_head_file(folder)
    if path is None:
        raise ModelError(f"'{folder}' has no value head: neither {' nor '.join(FILES.values())}.")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as cause:
        raise ModelError(f"{path}: not a sound file of tensors ({one_line(cause)}). Copy or save it again.") from cause
    if not isinstance(tensors, dict) or not isinstance(tensors.get(WEIGHT), Tensor):
        found = ", ".join(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
        raise ModelError(f"{path}: expected the tensor '{WEIGHT}', found {found or 'nothing'}.")
    weight = tensors[WEIGHT]
    bias = tensors.get(BIAS, weight.new_zeros(1))
    if weight.ndim != 2 or weight.shape[0] != 1 or bias.shape != (1,):
        found = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ModelError(f"{path}: expected a weight [1, hidden size] and a bias [1], found {found}.")
    return ValueHead(weight, bias)


def value_head_file(folder: str | Path) -> Path | None:
    paths = [Path(folder) / file for file in FILES.values()]
    return next((path for path in paths if path.is_file()), None)


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
