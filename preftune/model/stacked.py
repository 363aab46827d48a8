"""Several LoRA adapters over one frozen base in one pass of the decoder.

The rows of a batch stand K times in one batch, once for each candidate. A base layer is one product over all of them;
the adapters are two batched products, [K, n, in] by [K, in, r] by [K, r, out]. Nothing else in a decoder mixes
sequences, so what one candidate computes never reaches another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError
from preftune.model.policy import states_of
from preftune.types import PackedBatch

ADAPTER = "default"


def share_base(model: Any) -> Any:
    """A copy of an adapted model with an adapter of its own, over the same frozen weights."""
    return copy.deepcopy(model, _kept(model, trained=False))


def _kept(model: Any, trained: bool) -> dict[int, Any]:
    """For `deepcopy`: the tensors that are not copied."""
    weights = [weight for weight in model.parameters() if trained or not weight.requires_grad]
    return {id(tensor): tensor for tensor in [*weights, *model.buffers()]}


class StackedLora(nn.Module):
    """A linear layer with the adapters of those candidates that `members` names, in its order."""

    def __init__(self, layers: Sequence[Any], members: list[int]) -> None:
        super().__init__()
        self.base_layer = layers[0].base_layer
        self.layers, self.members = tuple(layers), members

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) holds the members' rows one member after the other; returns (..., out)."""
        layers = [self.layers[number] for number in self.members]
        down = torch.stack([layer.lora_A[ADAPTER].weight for layer in layers])  # (K, r, in)
        up = torch.stack([layer.lora_B[ADAPTER].weight for layer in layers])  # (K, out, r)
        result = self.base_layer(x)
        rows = x.reshape(len(layers), -1, x.shape[-1]).to(down.dtype)
        low = torch.bmm(rows, down.transpose(1, 2)) * layers[0].scaling[ADAPTER]
        return (result + torch.bmm(low, up.transpose(1, 2)).view(result.shape)).to(result.dtype)


def check_stackable(model: Any) -> None:
    """Raises:
    ModelError: an adapter is on a layer that is not linear, or more than adapters is trained.
    """
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A") and ADAPTER not in layer.lora_A:
            raise ModelError(
                f"Candidates train together with LoRA on linear layers, and '{path}' is none. Take other "
                "lora_target_modules, or train them one by one."
            )
    for path, weight in model.named_parameters():
        if weight.requires_grad and ".lora_" not in path:
            raise ModelError(
                f"Candidates train together where adapters are all that is trained, and '{path}' is trained whole, as "
                "the new tokens of a chat template make it. Set add_template_tokens: false, or train them one by one."
            )


class StackedDecoder:
    """The decoder of several adapted models that share their base; the one numbered `policy` is a policy already."""

    def __init__(self, models: Sequence[Any], policy: int = 0) -> None:
        bases = [model.get_base_model() for model in models]
        self.members: list[int] = []
        self.model = copy.deepcopy(bases[policy], _kept(bases[policy], trained=True)).train()
        for path, layer in list(self.model.named_modules()):
            if hasattr(layer, "lora_A") and layer is not self.model.get_output_embeddings():
                parent, _, name = path.rpartition(".")
                layers = [base.get_submodule(path) for base in bases]
                setattr(self.model.get_submodule(parent), name, StackedLora(layers, self.members))

    def states(self, members: Sequence[int], batch: PackedBatch) -> Tensor:
        """(K, N, D) hidden states that predict the batch's targets, under each member's adapter."""
        self.members[:] = members
        return states_of(self.model, repeat(batch, len(members))).view(len(members), batch.targets.shape[0], -1)


def repeat(batch: PackedBatch, count: int) -> PackedBatch:
    """The batch's rows, `count` times one after the other: what a decoder reads of it; the rest stays the first's."""
    tokens, responses = batch.tokens, batch.lengths.numel()
    scored, owner = (_shifted(index, step, count) for index, step in ((batch.scored, tokens), (batch.owner, responses)))
    return replace(
        batch,
        input_ids=batch.input_ids.repeat(1, count),
        position_ids=batch.position_ids.repeat(1, count),
        trees=tuple(tree._replace(start=tree.start + n * tokens) for n in range(count) for tree in batch.trees),
        scored=scored,
        targets=batch.targets.repeat(count),
        owner=owner,
        lengths=batch.lengths.repeat(count, 1),
    )


def _shifted(index: Tensor, step: int, count: int) -> Tensor:
    starts = torch.arange(count, device=index.device) * step
    return (index[None] + starts[:, None]).flatten()


def same_rows(one: PackedBatch, other: PackedBatch) -> bool:
    """Whether two batches hold the same tokens, laid out alike."""
    return one.trees == other.trees and torch.equal(one.input_ids, other.input_ids)
