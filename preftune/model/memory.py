"""What a run will need of memory, estimated from a model's config: no weights are read or made.

Counted, in bytes a parameter or token:

    weights       4 in float32, 2 in bfloat16; 1 or about 0.55 (scales included) for layers in 8 or 4 bits
    cast weights  2, where autocast (bf16, fp16) keeps a copy of float32 weights in the compute type
    gradients     4 of what trains; 2 for bfloat16 without a master
    master        4 of what trains in bfloat16, 2 for the low words of a split one
    moments       8 of what trains (AdamW), 4 in bfloat16 or for bfloat16 without a master, 2 in 8 bits (scales: 1/32)
    reference     the weights once more, for an objective that keeps a frozen copy
    activations   of one micro-batch of T tokens: what a layer keeps for backward, T x (24 D + c (3 Q + 3 KV + 4 I))
                  bytes (c those of the compute type, D hidden, Q and KV widths of the queries and of the keys or
                  values, I of the gated feed-forward; norms are in float32), times the layers; with gradient
                  checkpointing T x c D a layer, and one layer whole. On two small Llamas what autograd kept was 0.93
                  and 0.97 of this in float32, 1.01 and 1.03 of it under autocast (tests/model/test_memory.py)

Left out: the tile of logits (64 MiB on a CPU, 512 MiB on a GPU), workspace of kernels, what the allocator holds in
reserve, the CUDA context (about 0.5 GiB), buffers of several processes, and sharding.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from preftune.errors import ModelError
from preftune.model.load import checked_place, find_adapter, one_line

GIB = 2**30
BYTES_4BIT = 0.55


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB by purpose, see the module; `parameters` and `trainable` are numbers of parameters."""

    parameters: int
    trainable: int
    weights: float
    cast_weights: float
    gradients: float
    master: float
    moments: float
    reference: float
    activations: float

    @property
    def parts(self) -> dict[str, float]:
        """GiB by purpose, without those of nothing."""
        return {name: gib for name, gib in asdict(self).items() if name not in ("parameters", "trainable") and gib}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Precision:
    """How numbers are held.

    Args:
        weights: type of the weights; compute: that of the forward pass.
        master: a float32 master of low-precision weights is stepped: a copy (True), or one split into words ("split").
        state: of the optimizer: float32, bfloat16 or 8bit.
        bits: 4 or 8 for quantised linear layers, else None.
    """

    weights: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    master: bool | str = True
    bits: int | None = None
    state: str = "float32"

    @property
    def master_bytes(self) -> int:
        """Of a trained low-precision weight, beside it; small moments take the master that is split."""
        split = self.master == "split" or self.state != "float32"
        return (2 if split else 4) if self.master else 0

    @property
    def moment_bytes(self) -> float:
        """Of a weight in float32, or with a master."""
        return {"float32": 8, "bfloat16": 4, "8bit": 2 + 1 / 32}[self.state]


def load_config(name: str, revision: str = "main", trust_remote_code: bool = False) -> PretrainedConfig | None:
    """The config of a folder or a hub name, of an adapter's base; None where there is none to be had."""
    try:
        adapter = find_adapter(name, revision)
        place = checked_place(name) if adapter is None else checked_place(adapter.base)
        revision = revision if adapter is None else adapter.base_revision
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None


def build_empty_model(
    config: PretrainedConfig, scores: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of this config whose weights take no memory (on the device `meta`).

    Raises:
        ModelError: transformers cannot make one.
    """
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    config = copy.deepcopy(config)
    if scores:
        config.num_labels = 1
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as cause:  # model code of any kind runs here
        raise ModelError(f"no model can be built from this config ({one_line(cause)})") from cause


def embedded_tokens(config: PretrainedConfig) -> int | None:
    """How many tokens a model of this config has an embedding for."""
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None


def estimate_memory(
    model: nn.Module,
    config: PretrainedConfig,
    tokens: int,
    precision: Precision,
    *,
    copies_reference: bool = False,
    checkpointing: bool = False,
) -> MemoryEstimate:
    """The estimate for `model`, as it is trained: adapters on it, frozen parts without `requires_grad`.

    Args:
        tokens: those of the largest micro-batch.
        copies_reference: a frozen model stands beside the one that is trained.
        checkpointing: activations are made again in backward.
    """
    parameters = {id(parameter): parameter for parameter in model.parameters()}.values()
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    low = precision.weights.itemsize < 4
    # Adapters are float32 whatever the precision of the model below them.
    low_trained = trainable if low and not hasattr(model, "peft_config") else 0
    full_trained = trainable - low_trained
    weights = _weight_bytes(model, total - full_trained, precision) + full_trained * 4
    casts = precision.compute.itemsize < precision.weights.itemsize
    stepped = 4 if precision.master else 2
    low_moments = precision.moment_bytes if precision.master else 4
    return MemoryEstimate(
        parameters=total,
        trainable=trainable,
        weights=weights / GIB,
        cast_weights=total * precision.compute.itemsize / GIB if casts and precision.bits is None else 0.0,
        gradients=(full_trained * 4 + low_trained * stepped) / GIB,
        master=low_trained * precision.master_bytes / GIB,
        moments=(full_trained * precision.moment_bytes + low_trained * low_moments) / GIB,
        reference=total * precision.weights.itemsize / GIB if copies_reference else 0.0,
        activations=tokens * _activation_bytes(config, precision.compute.itemsize, checkpointing) / GIB,
    )


def _weight_bytes(model: nn.Module, numbers: int, precision: Precision) -> float:
    """Bytes of `numbers` weights that are not an adapter's."""
    if precision.bits is None:
        return numbers * precision.weights.itemsize
    held = BYTES_4BIT if precision.bits == 4 else 1.0
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    quantised = min(numbers, sum(module.weight.numel() for module in linear if not module.weight.requires_grad))
    return quantised * held + (numbers - quantised) * precision.weights.itemsize


def _activation_bytes(config: PretrainedConfig, size: int, checkpointing: bool) -> int:
    """Bytes kept for a token of a micro-batch; `size` are those of a number of the compute type."""
    text = config.get_text_config()
    hidden, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
    width = getattr(text, "head_dim", None) or hidden // heads
    shared = (getattr(text, "num_key_value_heads", None) or heads) * width
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
    layer = 24 * hidden + size * (3 * heads * width + 3 * shared + 4 * inner)
    return layers * size * hidden + layer if checkpointing else layers * layer
