"""The packed row as one variable-length flash call.

Per group one sequence (q = shared + first branch, k = the same) and one for each further branch
(q = branch, k = shared + branch), causal. Flash kernels align the causal triangle to the bottom right when there are
fewer queries than keys, which is exactly the tree; a window on key distance is one on positions for the same reason.
Queries stay where they are; keys and values are gathered once, and the gather's backward adds what the branches send
to the shared tokens.

The kernel is torch's own `varlen_attn`; where this release's takes no window or no scale, that of the flash-attn
package (`flash_attn_varlen_func`, aligned to the bottom right since 2.1) where it is installed.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.types import Tree

logger = logging.getLogger(__name__)
Kernel = Callable[..., Tensor]  # with the signature of `varlen_attn`
FLASH_ALIGNED = (2, 1)  # the first release of flash-attn whose causal mask is aligned to the bottom right


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
    kernel: Kernel | None = None,
) -> Tensor:
    """query (1, Hq, T, D), key and value (1, Hkv, T, D) -> (1, T, Hq, D).

    `kernel` has the signature of `torch.nn.attention.varlen.varlen_attn`; by default `find_kernel` chooses it.
    """
    kernel = kernel or find_kernel()
    assert kernel is not None, "can_serve() says whether there is one"
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


def can_serve() -> bool:
    """Whether there is a kernel that takes what the plan needs."""
    return find_kernel() is not None


@cache
def find_kernel() -> Kernel | None:
    """torch's call, else that of flash-attn, else None."""
    found = torch_kernel()
    if found is None:
        found = flash_kernel()
        if found is not None:
            logger.info("Attention of packed rows: flash-attn, as this torch's varlen_attn takes no window or scale.")
    return found


def torch_kernel() -> Kernel | None:
    """torch's `varlen_attn` where it takes a scale and a window: its signature has changed between releases."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # initialises CUDA kernels
    except ImportError:
        return None
    return varlen_attn if {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters) else None


def flash_kernel() -> Kernel | None:
    """`flash_attn_varlen_func` of the flash-attn package, called as `varlen_attn` is; None where it cannot be used."""
    try:
        package = importlib.import_module("flash_attn")
    except (ImportError, OSError):  # built for another torch, it fails to load
        return None
    version = tuple(int(part) for part in str(package.__version__).split(".")[:2])
    return _called_as_torchs(package.flash_attn_varlen_func) if version >= FLASH_ALIGNED else None


def _called_as_torchs(flash: Callable[..., Tensor]) -> Kernel:
    """flash-attn says causal and window apart: keys from i - left to i + right, and none after i where it is causal."""

    def kernel(
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
        return flash(
            q,
            k,
            v,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            softmax_scale=scale,
            causal=True,
            window_size=window_size if window_size[0] >= 0 else (-1, -1),
        )

    return kernel


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
