"""The packed row as one variable-length flash call.

Per group one sequence (q = shared + first branch, k = the same) and one for each further branch
(q = branch, k = shared + branch), causal. Flash kernels align the causal triangle to the bottom right when there are
fewer queries than keys, which is exactly the tree; a window on key distance is one on positions for the same reason.
Queries stay where they are; keys and values are gathered once, and the gather's backward adds what the branches send
to the shared tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.types import Tree


@dataclass(frozen=True)
class VarlenPlan:
    """Cumulative lengths (S + 1,) int32 of queries and keys, the longest of each, and kv_rows (Tk,) int64 into T."""

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    kv_rows: Tensor

    @staticmethod
    def of(trees: Sequence[Tree], device: torch.device | str) -> VarlenPlan:
        queries, keys = [0], [0]
        rows: list[Tensor] = []
        for tree in trees:
            at = tree.start + tree.shared
            shared = torch.arange(tree.start, at)
            for number, length in enumerate(tree.branches or (0,)):
                if number and not length:
                    continue
                rows += [shared, torch.arange(at, at + length)]
                at += length
                queries.append(queries[-1] + length + (0 if number else tree.shared))
                keys.append(keys[-1] + tree.shared + length)
        return VarlenPlan(
            torch.tensor(queries, dtype=torch.int32).to(device, non_blocking=True),
            torch.tensor(keys, dtype=torch.int32).to(device, non_blocking=True),
            max(b - a for a, b in pairwise(queries)),
            max(b - a for a, b in pairwise(keys)),
            torch.cat(rows).to(device, non_blocking=True),
        )


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: VarlenPlan,
    scale: float,
    window: int | None,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """query (1, Hq, T, D), key and value (1, Hkv, T, D) -> (1, T, Hq, D).

    `kernel` has the signature of `torch.nn.attention.varlen.varlen_attn`, which is what runs by default.
    """
    kernel = kernel or _torch_kernel()
    q = query[0].transpose(0, 1)
    k, v = (x[0].transpose(0, 1).index_select(0, plan.kv_rows) for x in (key, value))
    if (
        q.shape[1] != k.shape[1]
    ):  # older signatures have no enable_gqa; repeating heads after the gather is always right
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    reach = (window - 1, 0) if window else (-1, 0)
    out = kernel(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, scale=scale, window_size=reach)
    return out[None]


def _torch_kernel() -> Callable[..., Tensor]:
    """torch's own call; `can_serve` says whether this release's takes what the plan needs."""
    from torch.nn.attention.varlen import varlen_attn  # initialises CUDA kernels

    return varlen_attn


@cache
def can_serve() -> bool:
    """Whether torch's `varlen_attn` takes a scale and a window: its signature has changed between releases."""
    try:
        return {"scale", "window_size"} <= set(inspect.signature(_torch_kernel()).parameters)
    except ImportError:
        return False


def varlen_attn_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """What `varlen_attn` computes, one sequence at a time with explicit masks: runs anywhere, for checks."""
    outs = []
    bounds_q, bounds_k = cu_q.tolist(), cu_k.tolist()
    for i in range(len(bounds_q) - 1):
        a, b = slice(bounds_q[i], bounds_q[i + 1]), slice(bounds_k[i], bounds_k[i + 1])
        rows, columns = a.stop - a.start, b.stop - b.start
        distance = torch.arange(rows)[:, None] + (columns - rows) - torch.arange(columns)[None, :]
        visible = distance >= 0
        if window_size[0] >= 0:
            visible &= distance <= window_size[0]
        parts = (x.transpose(0, 1)[None] for x in (q[a], k[b], v[b]))
        out = F.scaled_dot_product_attention(*parts, attn_mask=visible.to(q.device), scale=scale)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
