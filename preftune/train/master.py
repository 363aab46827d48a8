"""AdamW that keeps a float32 master of low-precision weights.

At preference learning rates a bfloat16 weight hardly ever moves: the update is smaller than half its last digit. The
step is taken on a float32 copy, and the working weight is rounded from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def take_float32_gradients(parameter: Tensor) -> None:
    """Let a low-precision parameter take its gradient unrounded, where no engine's buckets hold it in its own type."""
    if not (dist.is_available() and dist.is_initialized()):
        parameter.grad_dtype = torch.float32


class MasterAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` on float32 masters; the masters are part of the state dict, so a resume is exact.

    Args:
        params: parameters or groups, as for AdamW; those already in float32 or float64 are stepped directly.
        kwargs: lr, betas, eps, weight_decay, as for AdamW.

    In one process gradients arrive in float32 (`Tensor.grad_dtype`), so that adding up micro-batches loses nothing.
    With several they stay in the weights' type, which is the type of the engines' reduction buckets.
    """

    def __init__(self, params: Iterable[Any], **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.pairs: list[tuple[Tensor, Tensor]] = []  # working weight, master
        for group in self.param_groups:
            group["params"] = [self._with_master(parameter) for parameter in group["params"]]

    def _with_master(self, parameter: Tensor) -> Tensor:
        if parameter.dtype in (torch.float32, torch.float64):
            return parameter
        take_float32_gradients(parameter)
        master = parameter.detach().float().requires_grad_()
        self.pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for working, master in self.pairs:
            master.grad = None if working.grad is None else working.grad.to(torch.float32)
        loss = super().step(closure)
        for working, master in self.pairs:
            working.copy_(master)
            master.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for working, _ in self.pairs:
            working.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for _, master in self.pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        masters = state_dict["masters"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "masters"})
        with torch.no_grad():
            for (working, master), saved in zip(self.pairs, masters, strict=True):
                master.copy_(saved)
                working.copy_(master)
