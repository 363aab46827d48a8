"""An adapter merged into its base model: one layer at a time in float32, then back in the precision of the weights.

PEFT merges in the precision that the weights have. In bfloat16 that rounds the product B·A before it is added, and
again afterwards; here the sum alone is rounded, once.
"""

from __future__ import annotations

import warnings

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from preftune.errors import ModelError
from preftune.model.load import one_line


@torch.no_grad()
def merge_adapter(adapted: PeftModel) -> PreTrainedModel:
    """The base model with the adapter in its weights; modules that were trained whole take the base's place.

    Raises:
        ModelError: the base weights are quantised, or PEFT cannot merge this adapter.
    """
    if getattr(adapted.get_base_model(), "is_quantized", False):
        raise ModelError(
            "The base model's weights are quantised, and an adapter cannot be merged into them without loss. Set "
            "base_model_name_or_path in adapter_config.json to the model before it was quantised."
        )
    try:
        for module in adapted.modules():
            if isinstance(module, BaseTunerLayer):
                _merge_layer(module)
        with warnings.catch_warnings():
            # "already merged", which is so, and "no longer tied", which PEFT writes into the config
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            merged = adapted.merge_and_unload()
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as cause:
        raise ModelError(f"The adapter cannot be merged: {one_line(cause)}") from cause
    _settle_ties(merged)
    return merged.requires_grad_(False)


def _merge_layer(module: BaseTunerLayer) -> None:
    weight = getattr(module.get_base_layer(), "weight", None)
    if not isinstance(weight, nn.Parameter):
        return  # fused experts and the like: PEFT merges them in its own way
    kept = weight.dtype
    weight.data = weight.data.float()
    module.merge()
    # merge() may have put another tensor there
    layer = module.get_base_layer()
    layer.weight.data = layer.weight.data.to(kept)


def _settle_ties(model: PreTrainedModel) -> None:
    """Embeddings that were trained apart must not be tied again by whoever loads the model."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is table.weight:
        return
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
