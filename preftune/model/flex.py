"""The packed row through FlexAttention: soft-cap, sinks and odd windows on a GPU, one compiled kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from preftune.model.attention import AttentionPlan

_compiled = torch.compile(flex_attention, dynamic=True)


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query (1, Hq, T, D), key and value (1, Hkv, T, D) -> (1, T, Hq, D)."""
    if window not in plan.kept:
        plan.kept[window] = block_mask(plan, window)

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    kernel = _compiled if query.is_cuda else flex_attention
    out = kernel(
        query,
        key,
        value,
        score_mod=capped if softcap is not None else None,
        block_mask=plan.kept[window],
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True) if sinks is not None else None,
    )
    if sinks is not None:
        out, lse = out[0], out[1].lse
        # a sink adds exp(s) to the softmax's denominator and nothing to its numerator
        out = out * torch.sigmoid(lse - sinks.reshape(1, -1, 1))[..., None].to(out.dtype)
    return out.transpose(1, 2)


def block_mask(plan: AttentionPlan, window: int | None) -> BlockMask:
    """The tree as a block mask over (group, branch, position)."""
    group, branch, position = plan.coordinates

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = (group[q] == group[k]) & (q >= k) & ((branch[k] == 0) | (branch[k] == branch[q]))
        return visible & (position[q] - position[k] < window) if window else visible

    return create_block_mask(sees, None, None, plan.tokens, plan.tokens, device=str(plan.device))
