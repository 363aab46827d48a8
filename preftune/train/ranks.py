"""What all processes of a run decide together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def agreed(asked: bool | Tensor, device: torch.device) -> bool:
    """Whether any process asks for it; every process must call this, and gets the same answer.

    A flag on the device is read once, after the processes have agreed.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return bool(asked)
    flag = torch.as_tensor(asked, device=device).int().reshape(1)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
