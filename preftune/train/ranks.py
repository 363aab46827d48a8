"""What all processes of a run decide together, and the gradients that they share."""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 2**23  # elements that are sent together


def leave_at_exit() -> None:
    """End the process group before Python itself ends.

    One that is left to the interpreter can abort its process in the last moment, with the work done and exit code -6.
    """
    if dist.is_available() and dist.is_initialized():
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def agreed(asked: bool | Tensor, device: torch.device) -> bool:
    """Whether any process asks for it; every process must call this, and gets the same answer.

    A flag on the device is read once, after the processes have agreed.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return bool(asked)
    flag = torch.as_tensor(asked, device=device).int().reshape(1)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def of_all_ranks(own: list[Any]) -> list[Any]:
    """What all processes have, those of the first one first; every process must call this."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return [item for part in every for item in part]


def meet(parameters: Sequence[Tensor], ended: bool, device: torch.device) -> tuple[bool, list[bool]]:
    """Whether memory has ended in any process, and for each parameter whether any has a gradient.

    Every process must call this.
    """
    said = [ended, *(parameter.grad is not None for parameter in parameters)]
    flags = torch.tensor(said, dtype=torch.int32, device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    first, *held = map(bool, flags.tolist())
    return first, held


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor], held: Sequence[bool]) -> None:
    """The mean of `.grad` over all processes, in place, as DDP makes it: shares first, then their sum.

    Args:
        parameters: in the same order in every process.
        held: whether any process has a gradient of it; where this one has none, it is zero here.
    """
    gradients = []
    for parameter, somewhere in zip(parameters, held, strict=True):
        if somewhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad.div_(dist.get_world_size()))
    for bucket in _buckets(gradients):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Of one type and device each; a gradient that fills one by itself is alone in it."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        like = bucket and bucket[0].dtype == gradient.dtype and bucket[0].device == gradient.device
        if bucket and (not like or sum(part.numel() for part in bucket) + gradient.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
