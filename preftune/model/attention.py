"""Attention over packed groups: every response sees its prompt and itself, nothing else.

Registered with the attention interface of transformers as `preftune`, so that no model code is touched: the policy
calls the decoder with `tree=AttentionPlan(...)` as a keyword, and each layer hands it to `tree_attention`. The name has
no mask function, so transformers builds no [T, T] mask.

Roads, chosen by `tree_attention` from the device and what the layer asks for:
* CPU, long groups: plain matrix products, a block of queries of one sequence at a time; about twice as fast as the CPU
  flash kernel up to some 1000 tokens, equal at 2000.
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
from preftune.model.logps import compute_dtype
from preftune.model.varlen import VarlenPlan, attend_varlen, can_serve
from preftune.types import Tree

NAME = "preftune"
DENSE_MEAN_TOKENS = 80  # below this mean group length dense blocks of groups beat one group after the other (float32)
DENSE_BLOCK_GROUPS = 16

_softmax_backward = torch.ops.aten._softmax_backward_data


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
        self._elsewhere: dict[torch.device, AttentionPlan] = {}

    def on(self, device: torch.device) -> AttentionPlan:
        """The plan for layers that lie on another device (`preftune.model.spread`)."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = AttentionPlan(self.trees, device)
        return self._elsewhere[device]

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
    tree = tree.on(query.device)
    kind = query.device.type
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = tree.biting(sliding_window)
    plain = softcap is None and s_aux is None and window is None
    if kind == "cpu" and plain and not tree.is_short:
        return TreeAttention.apply(query, key, value, tree.trees, scale).transpose(1, 2), None
    # under autocast, rotary embedding leaves q and k in float32 while v is already low precision
    query, key, value = (x.to(compute_dtype(kind, x.dtype)) for x in (query, key, value))
    attend = _attend_cuda if kind == "cuda" else attend_dense
    return attend(query, key, value, tree, scale, window, softcap, s_aux), None


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


class TreeAttention(torch.autograd.Function):
    """Attention of long groups on CPU: query (1, Hq, T, D), key and value (1, Hkv, T, D) -> (1, Hq, T, D).

    Scores exist for a block of queries of one sequence at a time and are made again in backward. Scores, softmax and
    the sums over blocks are float32 (float64 for float64); the products with the weights run in the compute type.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Tree], scale: float) -> Tensor:
        compute = compute_dtype("cpu", value.dtype)
        wide = torch.promote_types(compute, torch.float32)
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x[0].to(compute) for x in (query, key, value))
            heads, tokens, _ = q.shape
            # memory in (T, H, D) order, which is what the caller's transpose back needs
            out = torch.empty(tokens, heads, v.shape[2], dtype=compute).transpose(0, 1)
            for tree in trees:
                k_n, v_n = _sequence_buffer(k, tree, wide), _sequence_buffer(v, tree, compute)
                for own, shift in _sequences(tree):
                    k_n[:, own], v_n[:, own] = k[:, _moved(own, shift)], v[:, _moved(own, shift)]
                    for span in _row_blocks(own):
                        rows = _moved(span, shift)
                        weights = _causal_weights(_by_key_head(q, rows, k).to(wide) * scale, k_n, span)
                        out[:, rows] = torch.bmm(weights.to(compute), v_n[:, : span.stop]).view_as(out[:, rows])
        ctx.save_for_backward(q, k, v)
        ctx.options = trees, scale, [x.dtype for x in (query, key, value)]
        return out[None]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        trees, scale, dtypes = ctx.options
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = (torch.empty_like(x, dtype=dtype) for x, dtype in zip((q, k, v), dtypes, strict=True))
        with torch.autocast("cpu", enabled=False):
            for tree in trees:
                k_n, v_n, grad_k_n, grad_v_n = (_sequence_buffer(x, tree, wide) for x in (k, v, k, v))
                for own, shift in _sequences(tree):
                    k_n[:, own], v_n[:, own] = k[:, _moved(own, shift)], v[:, _moved(own, shift)]
                    grad_k_n[:, own], grad_v_n[:, own] = 0, 0
                    narrow_k = k_n[:, : own.stop].to(q.dtype)
                    for span in _row_blocks(own):
                        rows, keys = _moved(span, shift), slice(span.stop)
                        q_rows, g_rows = _by_key_head(q, rows, k), _by_key_head(grad[0], rows, k)
                        weights = _causal_weights(q_rows.to(wide) * scale, k_n, span)
                        _add_product(grad_v_n[:, keys], weights.to(q.dtype).mT, g_rows)
                        # the scale stands in the scores; taken to this small side it reaches both q and k
                        grad_weights = torch.bmm(g_rows.to(wide) * scale, v_n[:, keys].mT)
                        grad_scores = _softmax_backward(grad_weights, weights, -1, wide).to(q.dtype)
                        grad_q[:, rows] = torch.bmm(grad_scores, narrow_k[:, keys]).view_as(grad_q[:, rows])
                        _add_product(grad_k_n[:, keys], grad_scores.mT, q_rows)
                    branch = slice(tree.shared, own.stop)
                    grad_k[:, _moved(branch, shift)] = grad_k_n[:, branch]
                    grad_v[:, _moved(branch, shift)] = grad_v_n[:, branch]
                shared = slice(tree.start, tree.start + tree.shared)
                grad_k[:, shared], grad_v[:, shared] = grad_k_n[:, : tree.shared], grad_v_n[:, : tree.shared]
        return grad_q[None], grad_k[None], grad_v[None], None, None


def _sequences(tree: Tree) -> list[tuple[slice, int]]:
    """One sequence a branch, shared tokens first: (its positions that are queries, what leads from position to T).

    The shared tokens are queries of the first sequence; in the others they are keys that stand there already.
    """
    found = []
    first, shift = 0, tree.start
    for length in tree.branches or (0,):
        found.append((slice(first, tree.shared + length), shift))
        first, shift = tree.shared, shift + length
    return found


def _sequence_buffer(x: Tensor, tree: Tree, dtype: torch.dtype) -> Tensor:
    """(H, n, D) for the longest sequence of a tree."""
    return x.new_empty(x.shape[0], tree.shared + max(tree.branches, default=0), x.shape[2], dtype=dtype)


def _moved(span: slice, shift: int) -> slice:
    return slice(span.start + shift, span.stop + shift)


def _row_blocks(own: slice) -> list[slice]:
    """Few rows waste little above the diagonal; a long sequence needs more, as a block adds to the sums of all keys."""
    size = max(64, min(128, own.stop // 16))
    return [slice(at, min(at + size, own.stop)) for at in range(own.start, own.stop, size)]


def _by_key_head(x: Tensor, rows: slice, key: Tensor) -> Tensor:
    """These rows of (Hq, T, D), those of the query heads on one key head behind each other: (Hkv, Hq / Hkv · n, D)."""
    return x[:, rows].to(key.dtype).contiguous().view(key.shape[0], -1, x.shape[2])


def _causal_weights(scaled: Tensor, key: Tensor, span: slice) -> Tensor:
    """Softmax over the keys up to each query, (Hkv, Hq / Hkv · n, span.stop), for queries from `_by_key_head`."""
    scores = torch.bmm(scaled, key[:, : span.stop].mT)
    count = span.stop - span.start
    later = torch.full((count, count), -torch.inf, dtype=scores.dtype).triu_(1)
    scores.view(-1, count, span.stop)[:, :, span.start :].add_(later)
    return scores.softmax(-1)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, summed in the type of `total`."""
    if total.dtype == one.dtype:
        total.baddbmm_(one, other)
    else:
        total.add_(torch.bmm(one, other))


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
