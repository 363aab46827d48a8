"""What all processes of a run decide together."""

from __future__ import annotations

import torch
import torch.distributed as dist


def agreed(asked: bool, device: torch.device) -> bool:
    """Whether any process asks for it; every process must call this, and gets the same answer."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return asked
    flag = torch.tensor([int(asked)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
