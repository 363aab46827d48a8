"""Gradient checkpointing of as many decoder layers as memory asks for.

The first layers are checkpointed: backward comes to them last, when what the others have kept is gone, so that the one
that is made again adds nothing to the peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import ModelError
from preftune.model.policy import layers_of


def checkpoint_first(policy: Any, count: int, kwargs: Mapping[str, Any] | None = None) -> None:
    """Checkpoint the first `count` decoder layers and no others.

    Args:
        policy: a transformers model, or a PEFT model around one.
        kwargs: of transformers' own gradient checkpointing (`use_reentrant`, `offload`).

    Raises:
        ModelError: the model has fewer layers, or layers that do not checkpoint themselves.
    """
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    layers, name = layers_of(base), type(base).__name__
    if count > len(layers):
        raise ModelError(f"'checkpoint_layers' {count} is more than the {len(layers)} decoder layers of {name}.")
    if not base.supports_gradient_checkpointing or not all(
        isinstance(layer, GradientCheckpointingLayer) for layer in layers
    ):
        raise ModelError(
            f"'checkpoint_layers' {count}: the layers of {name} are not checkpointed one by one. "
            "Leave it out, or set gradient_checkpointing: true."
        )
    if count:
        given = dict(kwargs or {})
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        offload = {"offload": given.pop("offload")} if "offload" in given else {}
        enable(given or None, **offload)
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < count
