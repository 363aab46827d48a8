"""Attention over packed groups: every response sees its prompt and itself, nothing else.

Registered with the attention interface of transformers as `preftune`, so that no model code is touched: the policy
calls the decoder with `tree=AttentionPlan(...)` as a keyword, and each layer hands it to `tree_attention`. The name has
no mask function, so transformers builds no [T, T] mask.

Roads, chosen by `tree_attention` from the device and what the layer asks for:
* CPU, long groups: one flash call per segment, merged through the log-sum-exp; the backward of each segment is called
  with the merged output and log-sum-exp, which makes it exact.
* CPU, short groups, and everything that a kernel cannot do (soft-cap, sinks, a sliding window that bites): masked
  maths, the groups side by side in a few dense blocks.
* CUDA: one variable-length flash call (`varlen.py`), or FlexAttention (`flex.py`) for soft-cap, sinks and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from preftune.errors import ModelError
from preftune.model.varlen import VarlenPlan, attend_varlen, can_serve
from preftune.types import Tree

NAME = "preftune"
DENSE_MEAN_TOKENS = 80  # below this mean group length a dense block beats a flash call per segment (measured on CPU)
DENSE_BLOCK_GROUPS = 16

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class DenseBlock:
    """Groups of similar length as one dense batch.

    rows (B, n) index into T (padding repeats the group's first token); real (M,) the flat slots that hold tokens;
    tokens (M,) their index in T; visible (B, 1, n, n) bool.
    """

    rows: Tensor
    real: Tensor
    tokens: Tensor
    visible: Tensor


class AttentionPlan:
    """The trees of one packed row, and what the roads need of them, made once a batch and kept for all layers."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self.trees = tuple(trees)
        self.device = device
        self.tokens = self.trees[-1].end
        self.longest = max(tree.shared + max(tree.branches, default=0) for tree in self.trees)
        self.layers_served = 0  # the preflight compares it with the number of layers
        self._dense: dict[int | None, list[DenseBlock]] = {}
        self.kept: dict[object, object] = {}  # block masks of FlexAttention, by window

    @property
    def is_short(self) -> bool:
        return self.tokens < DENSE_MEAN_TOKENS * len(self.trees)

    def biting(self, window: int | None) -> int | None:
        """The window, or None where no sequence is long enough to feel it."""
        return window if window and window < self.longest else None

    @cached_property
    def varlen(self) -> VarlenPlan:
        return VarlenPlan.of(self.trees, self.device)

    @cached_property
    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """group, branch (0 = shared), position of every token, each (T,) int32."""
        group, branch, position = [], [], []
        for number, tree in enumerate(self.trees):
            group.append(torch.full((tree.end - tree.start,), number, dtype=torch.int32))
            branch.append(torch.zeros(tree.shared, dtype=torch.int32))
            position.append(torch.arange(tree.shared, dtype=torch.int32))
            for k, length in enumerate(tree.branches):
                branch.append(torch.full((length,), k + 1, dtype=torch.int32))
                position.append(torch.arange(tree.shared, tree.shared + length, dtype=torch.int32))
        group_T, branch_T, position_T = (torch.cat(parts).to(self.device) for parts in (group, branch, position))
        return group_T, branch_T, position_T

    def dense(self, window: int | None) -> list[DenseBlock]:
        if window not in self._dense:
            order = sorted(self.trees, key=lambda tree: tree.end - tree.start)
            blocks = [order[i : i + DENSE_BLOCK_GROUPS] for i in range(0, len(order), DENSE_BLOCK_GROUPS)]
            self._dense[window] = [self._block(block, window) for block in blocks]
        return self._dense[window]

    def _block(self, trees: Sequence[Tree], window: int | None) -> DenseBlock:
        _, branch_T, position_T = self.coordinates
        width = max(tree.end - tree.start for tree in trees)
        start = torch.tensor([[tree.start] for tree in trees])
        length = torch.tensor([[tree.end - tree.start] for tree in trees])
        column = torch.arange(width).expand(len(trees), width)
        filled = column < length
        rows = (start + torch.where(filled, column, 0)).to(self.device)
        real = filled.flatten().nonzero()[:, 0].to(self.device)  # on the host, so no device read
        branch, position = branch_T[rows], position_T[rows]
        column = column.to(self.device)
        earlier = column[:, :, None] >= column[:, None, :]
        visible = earlier & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
        if window:
            visible &= position[:, :, None] - position[:, None, :] < window
        # a padded slot repeats the first token as a branch-0 row in every respect, so no row of the mask is empty;
        # as a key it must not be seen by the others
        padded = ~filled.to(self.device)
        visible &= ~padded[:, None, :] | (column[:, :, None] == column[:, None, :])
        return DenseBlock(rows, real, rows.flatten()[real], visible[:, None])


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: AttentionPlan | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The signature of the transformers attention interface: query (1, Hq, T, D), key and value (1, Hkv, T, D).

    Returns:
        output (1, T, Hq, D), and None for the attention weights.

    Raises:
        ModelError: the layer needs what the packed road does not do (the preflight then takes the padded one).
    """
    if tree is None or query.shape[0] != 1 or query.shape[2] != tree.tokens or key.shape[2] != tree.tokens:
        raise ModelError("This model's layers do not pass the packed row through; the packed road cannot serve it.")
    if dropout:
        raise ModelError("Attention dropout is on, which prompt sharing would change. Set disable_dropout: true.")
    tree.layers_served += 1
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # rotary embedding leaves q and k in float32 while v is already low precision
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = tree.biting(sliding_window)
    if kind == "cuda":
        return _attend_cuda(query, key, value, tree, scale, window, softcap, s_aux), None
    if kind != "cpu" or softcap is not None or s_aux is not None or window is not None or tree.is_short:
        return attend_dense(query, key, value, tree, scale, window, softcap, s_aux), None
    return SegmentFlash.apply(query, key, value, tree.trees, scale).transpose(1, 2), None


def _attend_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    if softcap is None and sinks is None and query.dtype in (torch.bfloat16, torch.float16) and can_serve():
        return attend_varlen(query, key, value, plan.varlen, scale, window)
    from preftune.model.flex import attend_flex  # compiles kernels; only where it is the road

    return attend_flex(query, key, value, plan, scale, window, softcap, sinks)


class SegmentFlash(torch.autograd.Function):
    """Flash attention per segment on CPU. query (1, Hq, T, D), key and value (1, Hkv, T, D) -> (1, Hq, T, D).

    The first branch lies behind the shared tokens and runs with them as one causal segment. Any other branch attends
    to itself (causal) and to the shared tokens (full); the two parts are merged by their log-sum-exp.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Tree], scale: float) -> Tensor:
        # memory in (1, T, H, D) order, which is what the caller's transpose back needs
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        kept = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = torch.empty((1, query.shape[2], query.shape[1]), dtype=kept).transpose(1, 2)
        for tree in trees:
            for q, k, causal, adds in _segments(tree):
                o, l = _flash(query[:, :, q], key[:, :, k], value[:, :, k], 0.0, causal, scale=scale)
                if adds:
                    both = torch.logaddexp(lse[:, :, q], l)
                    old = out[:, :, q] * (lse[:, :, q] - both).exp()[..., None]
                    o, l = old + o * (l - both).exp()[..., None], both
                out[:, :, q] = o
                lse[:, :, q] = l
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.trees, ctx.scale = trees, scale
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for tree in ctx.trees:
            for q, k, causal, adds in _segments(tree):
                dq, dk, dv = _flash_backward(
                    grad[:, :, q],
                    query[:, :, q],
                    key[:, :, k],
                    value[:, :, k],
                    out[:, :, q],
                    lse[:, :, q],
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
                for target, part in ((grad_q[:, :, q], dq), (grad_k[:, :, k], dk), (grad_v[:, :, k], dv)):
                    target.add_(part) if adds else target.copy_(part)
        return grad_q, grad_k, grad_v, None, None


def _segments(tree: Tree) -> list[tuple[slice, slice, bool, bool]]:
    """(queries, keys, causal, adds), in the order they run; `adds`: earlier segments had these queries and keys."""
    shared = slice(tree.start, tree.start + tree.shared)
    first = tree.branches[0] if tree.branches else 0
    trunk = slice(tree.start, shared.stop + first)
    found = [(trunk, trunk, True, False)]
    at = trunk.stop
    for length in tree.branches[1:]:
        if length:
            branch = slice(at, at + length)
            found += [(branch, branch, True, False), (branch, shared, False, True)]
            at += length
    return found


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Masked attention, the groups in dense blocks: shapes as `tree_attention`. Any device, every feature."""
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    outs, tokens = [], []
    for block in plan.dense(window):
        q, k, v = (x[block.rows].transpose(1, 2) for x in (q_THD, k_THD, v_THD))  # (B, H, n, D)
        attend: Callable[..., Tensor] = _masked_softmax if softcap is not None or sinks is not None else _masked_sdpa
        out = attend(q, k, v, block.visible, scale, softcap, sinks)
        outs.append(out.transpose(1, 2).flatten(0, 1)[block.real])
        tokens.append(block.tokens)
    if len(outs) == 1:
        scattered = torch.empty_like(outs[0]).index_copy(0, tokens[0], outs[0])
    else:
        scattered = torch.empty_like(torch.cat(outs)).index_copy(0, torch.cat(tokens), torch.cat(outs))
    return scattered[None]


def _masked_sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, *_: object) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _masked_softmax(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        scores = torch.cat([scores, column], dim=-1)
    kept = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, dim=-1, dtype=kept).to(q.dtype)
    return (weights[..., : k.shape[2]] if sinks is not None else weights) @ v


AttentionInterface.register(NAME, tree_attention)
