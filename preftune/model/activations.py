"""What a forward pass leaves in memory for backward, counted on a model without weights.

In: a model on the device `meta`, as it is trained (adapter, frozen parts). Out: `Kept`, bytes a packed token.

The decoder runs twice over tokens of no content (torch's fake tensors: shapes, types and autocast, no numbers), and
what autograd asks to keep is added up; what grows with the tokens is activations, what does not is casts of weights.
So adapters, frozen parts, precision and any plain decoder are counted as they are, and on two small Llamas the count is
that of a real pass to the byte. Attention is taken to keep its operands and its result, as packed roads and flash
kernels do; masked maths (soft-caps, sinks) and eager attention keep more. A model whose pass depends on numbers (a
mixture of experts) is estimated by a formula instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, PretrainedConfig

from preftune.model.logps import compute_dtype
from preftune.model.policy import attention, decoder_of

logger = logging.getLogger(__name__)
NAME = "preftune-counts"
COUNTED = (64, 128)  # tokens of the two passes


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps.

    Args:
        token: of a packed token, over all layers.
        casts: of weights in the compute type, whatever the number of tokens.
        stream: of a packed token between two layers, which is what gradient checkpointing keeps of each.
        layers: how many there are.
    """

    token: float
    casts: float
    stream: float
    layers: int

    @property
    def layer(self) -> float:
        """Of a packed token in one layer."""
        return self.token / max(self.layers, 1)

    def per_token(self, checkpointed: int) -> float:
        """The inputs of the first `checkpointed` layers, and all of the others, or the one that is made again.

        The others are gone by the time the first of these is made again.
        """
        return checkpointed * self.stream + max(self.layers - checkpointed, 1) * self.layer


def count_kept(model: nn.Module, config: PretrainedConfig, compute: torch.dtype) -> Kept:
    """What the decoder of `model` keeps when it computes in `compute`. The model's weights become fake ones.

    Args:
        model: on the device `meta`; unusable afterwards but for its shapes.

    Raises:
        AttributeError: a config that does not say its sizes, of a model that has to be estimated.
    """
    if getattr(config.get_text_config(), "num_experts_per_tok", None) is None:
        try:
            return _counted(model, config, compute)
        except Exception as cause:  # model code of any kind runs here
            logger.debug("Activations are estimated: %s", cause)
    return formula(config, next(model.parameters()).dtype, compute, model)


def _counted(model: Any, config: PretrainedConfig, compute: torch.dtype) -> Kept:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = config.get_text_config().num_hidden_layers
    with _quiet(), FakeTensorMode():
        _materialise(model)
        model.train()
        with attention(base, NAME):
            few, stream = _pass(base, COUNTED[0], compute)
            many, _ = _pass(base, COUNTED[1], compute)
    token = (many - few) / (COUNTED[1] - COUNTED[0])
    return Kept(token, few - token * COUNTED[0], stream, layers)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback where an operation has no fake form."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _materialise(model: nn.Module) -> None:
    """Weights and buffers that pretend to lie on a CPU; what is tied stays tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) not in made:
                made[id(weight)] = nn.Parameter(_fake(weight), requires_grad=weight.requires_grad)
            module._parameters[name] = None if weight is None else made[id(weight)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _fake(buffer)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _pass(model: Any, tokens: int, compute: torch.dtype) -> tuple[float, float]:
    """Bytes kept by one pass, and those of a token between layers."""
    held = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            kept[storage._cdata] = tensor  # held on to, so that no other takes its place
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long)
    low = compute if compute in (torch.bfloat16, torch.float16) else torch.bfloat16
    casts = compute != next(model.parameters()).dtype
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", low, enabled=casts),
    ):
        out = decoder_of(model)(
            input_ids=ids, position_ids=torch.arange(tokens)[None], use_cache=False, return_dict=True
        )
    states = out.last_hidden_state
    return float(sum(t.untyped_storage().nbytes() for t in kept.values())), states.shape[-1] * states.element_size()


class _KeepsOperands(torch.autograd.Function):
    """Attention that computes nothing: it keeps query, key and value, and has a result of the right shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return value.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("nothing runs backward here")


def _keep_operands(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **more: object
) -> tuple[Tensor, None]:
    kind = compute_dtype("cpu", value.dtype)
    return _KeepsOperands.apply(query.to(kind), key.to(kind), value.to(kind)), None


AttentionInterface.register(NAME, _keep_operands)


def formula(config: PretrainedConfig, weights: torch.dtype, compute: torch.dtype, model: nn.Module) -> Kept:
    """By the sizes of a config: of a token in a layer 24 D + c (3 Q + 3 KV + 4 I) bytes.

    c are the bytes of the compute type, D hidden, Q and KV the widths of the queries and of the keys or values, I that
    of the gated feed-forward (of the experts that are chosen); norms are in float32.

    Raises:
        AttributeError: the config does not say them.
    """
    text = config.get_text_config()
    hidden, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
    width = getattr(text, "head_dim", None) or hidden // heads
    shared = (getattr(text, "num_key_value_heads", None) or heads) * width
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
    size = compute.itemsize
    layer = 24 * hidden + size * (3 * heads * width + 3 * shared + 4 * inner)
    casts = 0
    if size < weights.itemsize:
        casts = size * sum(weight.numel() for weight in model.parameters() if weight.ndim >= 2)
    return Kept(layers * layer, casts, weights.itemsize * hidden, layers)
