"""The roads a GPU takes, on CPU: the variable-length plan and FlexAttention, outputs and gradients against padded."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as flex_module

from preftune.data.pack import pack
from preftune.model import varlen
from preftune.model.attention import AttentionPlan, TreeAttention, attend_dense
from preftune.model.flex import attend_flex
from preftune.model.varlen import VarlenPlan, attend_varlen, varlen_attn_reference
from preftune.types import Tree
from tests.small import build_group

GROUPS = [build_group(30, 20, 33), build_group(1, 1, 5), build_group(9, 12, 18, opening=6), build_group(5, 3, 8, 4)]
BATCH = pack(GROUPS)
SCALE = 0.25


def tensors(heads=4, kv_heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shape = (1, heads, BATCH.tokens, 16)
    return [
        torch.randn(1, h, shape[2], shape[3], generator=generator, dtype=dtype).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    ]


def padded(query, key, value, window=None, softcap=None, sinks=None):
    """Each response as a sequence of its own with an explicit causal mask; rows put back where they came from."""
    out = torch.zeros_like(query.transpose(1, 2))
    repeat = query.shape[1] // key.shape[1]
    for tree in BATCH.trees:
        at = tree.start + tree.shared
        for length in tree.branches:
            rows = torch.cat([torch.arange(tree.start, tree.start + tree.shared), torch.arange(at, at + length)])
            at += length
            q, k, v = query[:, :, rows], key[:, :, rows], value[:, :, rows]
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
            distance = torch.arange(len(rows))[:, None] - torch.arange(len(rows))[None, :]
            visible = (distance >= 0) & (distance < (window or 10**9))
            scores = (q @ k.transpose(-1, -2)) * SCALE
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~visible, float("-inf"))
            if sinks is not None:
                scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, len(rows), 1)], -1)
            result = (scores.softmax(-1)[..., : len(rows)] @ v).transpose(1, 2)
            # shared rows come once from every branch and are equal: keep the first
            fresh = (
                rows if tree.branches[0] == length and at == tree.start + tree.shared + length else rows[tree.shared :]
            )
            out = out.index_copy(1, fresh, result[:, len(rows) - len(fresh) :])
    return out


def compare(attend, wanted, *inputs, tolerance=1e-5):
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    found = attend()
    assert (found - wanted).abs().max() <= tolerance
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        assert (one - other).abs().max() <= tolerance


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's eager form computes gradients on CPU, but its front door turns them away."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("window", [None, 7])
def test_the_variable_length_plan(window):
    q, k, v = tensors()
    plan = VarlenPlan.of(BATCH.trees, "cpu")

    def attend():
        return attend_varlen(q, k, v, plan, SCALE, window, kernel=varlen_attn_reference)

    compare(attend, padded(q, k, v, window), q, k, v)


def test_the_variable_length_plan_names_every_query_once():
    plan = VarlenPlan.of(BATCH.trees, "cpu")
    assert plan.cu_q[-1].item() == BATCH.tokens
    assert plan.cu_k[-1].item() == len(plan.kv_rows)
    assert plan.max_k == 62  # prompt 30 and 33 - 1 tokens of the longer response


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """The signature of flash-attn 2 and what its documentation says of it, with scores written out.

    Query i of a sequence sees the keys from i + seqlen_k - seqlen_q - window_size[0] to i + seqlen_k - seqlen_q +
    window_size[1], both included and -1 without end; causal: none after i + seqlen_k - seqlen_q. K and V may have fewer
    heads. Only half precision is taken.
    """
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert q.ndim == 3 and k.shape == v.shape and k.shape[0] == cu_seqlens_k[-1] and q.shape[0] == cu_seqlens_q[-1]
    assert not dropout_p and not softcap and alibi_slopes is None and block_table is None and not return_attn_probs
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    left, right = (end if end >= 0 else 10**9 for end in window_size)
    outs = []
    for (a, b), (c, d) in zip(cu_seqlens_q.unfold(0, 2, 1), cu_seqlens_k.unfold(0, 2, 1), strict=True):
        assert b - a <= max_seqlen_q and d - c <= max_seqlen_k
        at = torch.arange(b - a)[:, None] + (d - c) - (b - a) - torch.arange(d - c)[None, :]  # query's place - key's
        seen = (at <= left) & (at >= -right) & (at >= (0 if causal else -(10**9)))
        scores = torch.einsum("qhd,khd->hqk", q[a:b].float(), k[c:d].float()) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v[c:d].float()))
    return torch.cat(outs).to(q.dtype)


@pytest.fixture
def flash_attn(monkeypatch):
    """The package, and a torch whose own call takes no window."""
    package = ModuleType("flash_attn")
    package.__version__, package.flash_attn_varlen_func = "2.8.3.post1", flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(varlen, "torch_kernel", lambda: None)
    varlen.find_kernel.cache_clear()
    yield package
    varlen.find_kernel.cache_clear()


@pytest.mark.parametrize("window", [None, 7])
def test_the_plan_through_the_flash_attn_package(flash_attn, window):
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in tensors())
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    plan = VarlenPlan.of(BATCH.trees, "cpu")
    assert varlen.can_serve()
    found, wanted = attend_varlen(q, k, v, plan, SCALE, window), padded(*wide, window)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    compared = [(found, wanted)]
    compared += zip(
        torch.autograd.grad(found, (q, k, v), grad.bfloat16()), torch.autograd.grad(wanted, wide, grad), strict=True
    )
    for one, other in compared:
        assert (one.float() - other).norm() <= 1e-2 * other.norm()


def test_a_release_of_flash_attn_that_aligns_to_the_top_left_is_not_used(flash_attn):
    flash_attn.__version__ = "2.0.9"
    assert not varlen.can_serve()


def test_torchs_own_kernel_comes_first(flash_attn, monkeypatch):
    monkeypatch.setattr(varlen, "torch_kernel", lambda: varlen_attn_reference)
    assert varlen.find_kernel() is varlen_attn_reference


def test_the_call_of_this_torch_takes_what_the_plan_gives():
    plan = {"scale": SCALE, "window_size": (-1, 0)}
    inspect.signature(varlen.torch_kernel()).bind(*["q", "k", "v", "cu_q", "cu_k", 1, 1], **plan)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_flex_attention(flex_on_cpu, window, softcap):
    q, k, v = tensors()
    plan = AttentionPlan(BATCH.trees, torch.device("cpu"))

    def attend():
        return attend_flex(q, k, v, plan, SCALE, window, softcap, None)

    compare(attend, padded(q, k, v, window, softcap), q, k, v)


def test_flex_attention_with_sinks(flex_on_cpu):
    q, k, v = tensors()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True)
    plan = AttentionPlan(BATCH.trees, torch.device("cpu"))
    compare(lambda: attend_flex(q, k, v, plan, SCALE, 7, None, sinks), padded(q, k, v, 7, None, sinks), q, k, v, sinks)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_dense_blocks(window, softcap, with_sinks):
    q, k, v = tensors()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True) if with_sinks else None
    plan = AttentionPlan(BATCH.trees, torch.device("cpu"))
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    compare(
        lambda: attend_dense(q, k, v, plan, SCALE, window, softcap, sinks),
        padded(q, k, v, window, softcap, sinks),
        *inputs,
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_tree_attention(kv_heads):
    q, k, v = tensors(kv_heads=kv_heads)
    compare(lambda: TreeAttention.apply(q, k, v, BATCH.trees, SCALE).transpose(1, 2), padded(q, k, v), q, k, v)


def test_tree_attention_in_float64():
    q, k, v = tensors(dtype=torch.float64)
    attend = lambda: TreeAttention.apply(q, k, v, BATCH.trees, SCALE).transpose(1, 2)  # noqa: E731
    compare(attend, padded(q, k, v), q, k, v, tolerance=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.0], ids="values around {}".format)
def test_tree_attention_in_bfloat16_is_as_near_to_the_truth_as_torchs_flash_kernel(offset):
    """Values with a common part are the hard case: their gradient is a small difference of large numbers."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 4, 300, 64, generator=generator) for _ in range(4))
    v = v / 2 + offset * torch.randn(1, 4, 1, 64, generator=generator)

    def results(attend, dtype):
        inputs = [x.bfloat16().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = attend(*inputs)
        return [x.double() for x in (out.detach(), *torch.autograd.grad(out, inputs, grad.bfloat16().to(dtype)))]

    def flash(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def tree(q, k, v):
        return TreeAttention.apply(q, k, v, (Tree(0, 300, ()),), 0.125)

    exact = results(flash, torch.float64)
    errors = [
        [((one - truth).norm() / truth.norm()).item() for one, truth in zip(found, exact, strict=True)]
        for found in (results(tree, torch.bfloat16), results(flash, torch.bfloat16))
    ]
    assert all(ours <= 1.4 * theirs for ours, theirs in zip(*errors, strict=True)), errors


def test_a_window_that_bites_nobody_is_no_window():
    plan = AttentionPlan([Tree(0, 5, (3, 4))], torch.device("cpu"))
    assert plan.biting(9) is None
    assert plan.biting(8) == 8
    assert plan.biting(None) is None


def test_bottom_right_alignment_is_what_scaled_dot_product_attention_does_not_do():
    """The reason for a plan of our own: `is_causal` aligns to the top left when there are fewer queries than keys."""
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4)
    v = torch.eye(5)[None, None, :, :4]
    top_left = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ours = varlen_attn_reference(
        q[0].transpose(0, 1),
        k[0].transpose(0, 1),
        v[0].transpose(0, 1),
        torch.tensor([0, 2]),
        torch.tensor([0, 5]),
        2,
        5,
        scale=0.5,
        window_size=(-1, 0),
    )
    assert (ours[0, 0, 3] > 0) and (top_left[0, 0, 0, 3] == 0)
