"""Decoder layers through torch.compile, attention left out.

In: a policy. Out: the same policy, whose layers run compiled wherever it answers a packed batch; names, saving and
adapters stay as they are. Answering prompts goes through the plain layers, as every token there would be a new shape.

What stands between the matrix products of a layer (norms, rotary embedding, gates, residuals) becomes a few fused
kernels. Attention is a break in the graph: it is a kernel already, and its plan is another one in every batch. Lengths
are symbols, and all layers of a kind share one graph, so later batches compile nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface

from preftune.errors import RecipeError
from preftune.model.attention import NAME, tree_attention
from preftune.model.policy import layers_of


def compile_layers(policy: Any, backend: str = "inductor", mode: str | None = None) -> int:
    """Compile the decoder layers of a policy in place; returns how many.

    Args:
        backend, mode: as torch.compile takes them; a mode without CUDA graphs, which want fixed shapes.

    Raises:
        RecipeError: torch.compile does not work on this machine.
        ModelError: the model has no list of decoder layers.
    """
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    layers = layers_of(base)
    check_compiler(base.device, backend)
    AttentionInterface.register(NAME, torch.compiler.disable(tree_attention))
    # DDP's own cut of a graph into buckets is for whole models; single layers are cut enough, and shapes are symbols
    torch._dynamo.config.optimize_ddp = False
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it warns of the break at attention
    compiled = {
        kind: torch.compile(_uncheckpointed(kind), backend=backend, mode=mode, dynamic=True)
        for kind in {type(layer) for layer in layers}
    }
    for layer in layers:
        layer.forward = partial(_run, layer, compiled[type(layer)])
    base.compiled_layers = tuple(layers)
    return len(layers)


def _checkpoints_inside(kind: type) -> bool:
    """Whether a class of layers checkpoints itself inside of `forward`, where torch.compile would give up."""
    return kind.forward.__code__.co_name == "forward_with_checkpointing"  # type: ignore[attr-defined]


def _uncheckpointed(kind: type) -> Callable[..., Any]:
    forward = kind.forward  # type: ignore[attr-defined]
    return forward.__wrapped__ if _checkpoints_inside(kind) else forward


def _run(layer: Any, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`forward` of a layer: checkpointed where it is, around what is compiled."""
    if _checkpoints_inside(type(layer)) and layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(compiled, layer, **kwargs), *args)
    return compiled(layer, *args, **kwargs)


def check_compiler(device: torch.device, backend: str) -> None:
    """Compile two operations: a compiler that is missing should not end a run in its first step.

    Raises:
        RecipeError: torch.compile does not work here; the cause in one line.
    """
    try:
        tried = torch.compile(lambda x: (x * x).relu(), backend=backend, dynamic=True)
        tried(torch.ones(4, device=device))
    except Exception as cause:  # of any backend
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
        raise RecipeError(
            f"'torch_compile' true cannot run on this machine ({backend} on {device.type}: {lines[0][:200]}). "
            "Leave it out."
        ) from cause
