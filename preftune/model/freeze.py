"""Which parameters train: freezing parts of a model by name, and saying what is left."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from preftune.errors import ModelError

logger = logging.getLogger(__name__)
PARTS = ("embeddings", "head", "norm")
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers, not tensors; a tied weight counts once, a quantised one by the weights it stands for."""

    frozen: int
    trainable: int


def freeze(model: Any, names: Sequence[str]) -> ParameterCounts:
    """Set `requires_grad` to False for parts of `model`, and return how many numbers are frozen and trained then.

    Args:
        names: any of
            embeddings: every embedding table;
            head: the output head, or the score head of a reward model;
            norm: every normalisation layer;
            layers.3, layers.0-7: decoder layers, both ends included, whatever the architecture calls them;
            else the beginning or the end of parameter or module names, in whole words between dots: `model.layers.2`,
            `mlp`, `q_proj`, `bias`.

    Raises:
        ModelError: a name fits nothing, or nothing would be left to train; the model is not changed then.
    """
    parameters = dict(model.named_parameters())
    chosen: set[int] = set()
    for name in names:
        chosen |= {id(parameter) for parameter in _named(model, name)}
    left = [name for name, p in parameters.items() if p.requires_grad and id(p) not in chosen]
    if not left:
        raise ModelError(f"freeze: {', '.join(names)} freezes all of {_kind(model)}. Leave something to train.")
    for parameter in parameters.values():
        if id(parameter) in chosen:
            parameter.requires_grad_(False)
    _say_if_tied(model, names)
    return count_parameters(model)


def count_parameters(model: nn.Module) -> ParameterCounts:
    frozen = trainable = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            trainable += _numel(parameter)
        else:
            frozen += _numel(parameter)
    return ParameterCounts(frozen, trainable)


def trainable_summary(model: nn.Module) -> str:
    """One phrase for the log, such as "trains 1,234,567 of 58,500,000 parameters (2.1 %)"."""
    counts = count_parameters(model)
    total = counts.frozen + counts.trainable
    share = 100 * counts.trainable / max(total, 1)
    return f"trains {counts.trainable:,} of {total:,} parameters ({share:.{1 if share >= 1 else 2}f} %)"


def check_trainable(model: Any) -> None:
    """Refuse to train quantised weights, or nothing.

    Raises:
        ModelError: no parameter of `model` has `requires_grad`, or it is quantised and has no adapter.
    """
    if getattr(model, "is_quantized", False) and not hasattr(model, "peft_config"):
        raise ModelError(
            f"{_kind(model)} is quantised, and quantised weights cannot be trained. Set use_peft: true to train an "
            "adapter on it, or load it without load_in_4bit and load_in_8bit."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"All of {_kind(model)} is frozen: there is nothing to train.")


def _named(model: Any, name: str) -> list[nn.Parameter]:
    """The parameters of one entry.

    Raises:
        ModelError: there are none.
    """
    layers = _LAYERS.fullmatch(name)
    if name in PARTS:
        found = _part(model, name)
    elif layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        blocks = _decoder_layers(model)
        found = [p for block in blocks[first : last + 1] for p in block.parameters()] if last < len(blocks) else []
    else:
        found = [p for path, p in model.named_parameters(remove_duplicate=False) if _fits(name, path)]
    if not found:
        raise ModelError(f"freeze: {_kind(model)} has no '{name}'. {_what_exists(model, name)}")
    return found


def _fits(name: str, path: str) -> bool:
    """Whole words at the beginning or the end of the parameter's name, or of its module's."""
    module = path.rpartition(".")[0]
    return f"{path}.".startswith(f"{name}.") or any(f".{end}".endswith(f".{name}") for end in (path, module))


def _part(model: Any, part: str) -> list[nn.Parameter]:
    if part == "head":
        head = _head(model)
        return [] if head is None else list(head.parameters())
    modules = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Embedding) if part == "embeddings" else "norm" in type(module).__name__.lower())
    ]
    return [parameter for module in modules for parameter in module.parameters()]


def _head(model: Any) -> nn.Module | None:
    head = model.get_output_embeddings()
    return head if head is not None else getattr(model, "score", None)


def _decoder_layers(model: Any) -> nn.ModuleList:
    """The first list of modules with as many entries as the configuration has layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    number = model.config.get_text_config().num_hidden_layers
    return next((blocks for blocks in lists if len(blocks) == number), nn.ModuleList())


def _say_if_tied(model: Any, names: Sequence[str]) -> None:
    weight = getattr(_head(model), "weight", None)
    tied = weight is not None and weight is model.get_input_embeddings().weight
    if tied and not weight.requires_grad and not {"head", "embeddings"} <= set(names):
        logger.warning("freeze: the head of %s is tied to its embeddings, so both are frozen.", _kind(model))


def _what_exists(model: Any, name: str) -> str:
    words = {word for path, _ in model.named_parameters() for word in path.split(".") if not word.isdigit()}
    close = difflib.get_close_matches(name.rpartition(".")[2], sorted(words | set(PARTS)), n=1)
    meant = f"Did you mean '{close[0]}'? " if close else ""
    layers = len(_decoder_layers(model))
    parts = [*PARTS, *([f"layers.0-{layers - 1}"] if layers else [])]
    return f"{meant}There are {', '.join(parts)}, and names with {', '.join(sorted(words)[:20])}."


def _kind(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def _numel(parameter: Tensor) -> int:
    """A 4-bit weight of bitsandbytes holds two numbers a byte and knows its true shape."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
