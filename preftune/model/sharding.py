"""Weights that an engine has cut in pieces, one a rank: FSDP2's DTensors and the partitions of DeepSpeed ZeRO-3.

A piece is exchanged in place, and what has been gathered of the others is forgotten. Under ZeRO-3 weights are in pieces
from loading on, before the engine is there that gathers them: `lent` does it until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_partitioned(weight: Tensor) -> bool:
    """Whether DeepSpeed ZeRO-3 has cut it; its shape is that of nothing then."""
    return hasattr(weight, "ds_id")


def is_sharded(model: nn.Module) -> bool:
    return any(is_partitioned(weight) or isinstance(weight, DTensor) for weight in model.parameters())


def shape_of(weight: Tensor) -> torch.Size:
    return getattr(weight, "ds_shape", weight.shape)


def count_parameters(model: nn.Module) -> int:
    """As if the weights were whole."""
    return sum(shape_of(weight).numel() for weight in model.parameters())


def own_piece(weight: Tensor) -> Tensor:
    """What this rank holds of a weight: a view, all of it where it is whole."""
    if is_partitioned(weight):
        return weight.ds_tensor.data
    local = weight.detach()
    return local.to_local() if isinstance(local, DTensor) else local


def whole(weight: Tensor) -> Tensor:
    """A copy of all of a weight. Every rank must ask for it."""
    if is_partitioned(weight):
        with gathered([weight]):
            return weight.detach().clone()
    value = weight.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict of a model in ordinary memory, made whole one weight after the other; empty without `keep`.

    Every rank must ask for it. What is tied stays one tensor.
    """
    made: dict[int, Tensor] = {}
    state = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in made:
            value = whole(weight)
            made[id(weight)] = value.cpu() if keep else value.new_empty(0)
        state[name] = made[id(weight)]
    return state if keep else {}


@contextmanager
def gathered(weights: Iterable[Tensor], changed: bool = False) -> Iterator[None]:
    """ZeRO-3's weights whole, on every rank, to be read; or `changed`, by every rank in the same way."""
    absent = [weight for weight in weights if is_partitioned(weight) and _is_absent(weight)]
    if absent:
        absent[0].all_gather(absent)
    try:
        yield
    finally:
        if absent:
            absent[0].partition(absent, has_been_updated=changed)


def to_pieces(model: nn.Module) -> None:
    """Let FSDP2 give up the weights that it has gathered, so that the parameters of the model are its own pieces."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def exchange_pieces(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Exchange this rank's pieces of the named weights with `kept`; no more than one weight is in memory beside them.

    Whole weights that an engine holds on to are made again: they are of the pieces before.
    """
    to_pieces(model)  # first: until then its parameters are others, of memory that goes
    weights = {name: weight for name, weight in model.named_parameters() if name in kept}
    held = [weight for weight in weights.values() if is_partitioned(weight) and not _is_absent(weight)]
    if held:  # the small ones, which ZeRO-3 leaves whole
        held[0].partition(held, has_been_updated=False)
    for name, weight in weights.items():
        piece = own_piece(weight)
        before = piece.clone()
        piece.copy_(kept[name])
        kept[name].copy_(before)
    if held:
        held[0].all_gather(held)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Let a model run forward whose weights ZeRO-3 has cut at loading, and that no engine holds yet.

    Every module has its own weights whole while it runs, and what an adapter has put around a layer all of them.
    """
    if not any(map(is_partitioned, model.parameters())):
        yield
        return
    hooks, open_ones = [], {}

    def before(module: nn.Module, _: Any) -> None:
        open_ones[module] = gathered(list(module.parameters(recurse=hasattr(module, "lora_A"))))
        open_ones[module].__enter__()

    def after(module: nn.Module, _: Any, output: Any) -> None:
        open_ones.pop(module).__exit__(None, None, None)

    try:
        for module in model.modules():
            if hasattr(module, "lora_A") or any(True for _ in module.parameters(recurse=False)):
                hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for borrowed in open_ones.values():  # of a pass that failed
            borrowed.__exit__(None, None, None)


def _is_absent(weight: Any) -> bool:
    return weight.ds_status.name == "NOT_AVAILABLE"
