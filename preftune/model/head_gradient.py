"""Lets the head add its weight's gradient straight into `.grad`, without a second [V, D] buffer beside it.

The fused head takes its gradient in the forward pass, before autograd knows what the loss will be multiplied by.
Whoever drives the step promises, with `straight_into_grad()` around forward and backward, that each loss gets one
backward, times 1, and that what a failed pass has left in `.grad` is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PROMISED: ContextVar[bool] = ContextVar("straight_into_grad", default=False)


@contextmanager
def straight_into_grad(promised: bool = True) -> Iterator[None]:
    """The promise above, for what is run inside."""
    token = _PROMISED.set(promised)
    try:
        yield
    finally:
        _PROMISED.reset(token)


def grad_dtype_of(weight: Tensor) -> torch.dtype:
    """The type in which a weight takes its gradient (train/master.py asks for float32)."""
    return (getattr(weight, "grad_dtype", None) if weight.is_leaf else None) or weight.dtype


def takes_sums(weight: Tensor, wide: torch.dtype) -> bool:
    """Whether sums of this type can be added to `weight.grad` behind autograd's back.

    It must be a plain parameter that nobody watches, as engines do (they take part by hooks), in the type of the sums.
    A tied embedding may: autograd adds its part to the same `.grad`.
    """
    return (
        _PROMISED.get()
        and type(weight) is nn.Parameter
        and weight.requires_grad
        and grad_dtype_of(weight) == wide
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
        and not (dist.is_available() and dist.is_initialized())
    )
