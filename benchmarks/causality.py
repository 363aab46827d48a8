"""Whether each attention backend on this machine sees what a packed row must see, outputs and gradients.

Flash kernels align the causal triangle to the bottom right where there are fewer queries than keys; the packed row
depends on it. Every backend that runs here is held against float64 scores under a mask that is written out, sequence by
sequence: a prompt sees itself, a response the prompt and itself, through a window or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.model.attention import AttentionPlan, TreeAttention, attend_dense
from preftune.model.varlen import attend_varlen, flash_kernel, torch_kernel, varlen_attn_reference
from preftune.types import Tree

TREES = (Tree(0, 30, (19, 32)), Tree(81, 1, (1, 4)), Tree(87, 15, (6, 12)), Tree(120, 130, (70, 3)))
HEADS, KEY_HEADS, WIDTH, WINDOW = 4, 2, 64, 7
SCALE = WIDTH**-0.5
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}

Attend = Callable[[Tensor, Tensor, Tensor, AttentionPlan, int | None], Tensor]


@dataclass(frozen=True)
class Verdict:
    """Largest difference of outputs and of gradients; `reason` where a backend did not run."""

    backend: str
    window: int | None
    dtype: str
    output_gap: float | None = None
    gradient_gap: float | None = None
    allowed: float | None = None
    reason: str = ""

    @property
    def right(self) -> bool | None:
        """None where it did not run."""
        if self.output_gap is None or self.gradient_gap is None or self.allowed is None:
            return None
        return self.output_gap <= self.allowed and self.gradient_gap <= self.allowed


def check_backends(device: torch.device) -> list[Verdict]:
    """A verdict for every backend, type and window."""
    return [
        _verdict(name, attend, reason, dtype, window, device)
        for name, attend, dtype, reason in backends(device)
        for window in (None, WINDOW)
        if not (window and name == "CPU matrix products")  # never given a window that bites
    ]


def backends(device: torch.device) -> Iterator[tuple[str, Attend, torch.dtype, str]]:
    """Name, function, type, and why it cannot run here ("" where it can)."""
    cuda = "" if device.type == "cuda" else "needs a CUDA device"
    low, full = torch.bfloat16, torch.float32
    yield "varlen plan, written out", _varlen(varlen_attn_reference), full, ""
    yield "dense blocks", _dense, full, ""
    yield "CPU matrix products", _products, full, "runs on the CPU" if device.type == "cuda" else ""
    own, flash = torch_kernel(), flash_kernel()
    yield "torch varlen_attn", _varlen(own), low, cuda or ("" if own else "this torch's takes no window")
    yield "flash-attn package", _varlen(flash), low, cuda or ("" if flash else "not installed, or older than 2.1")
    yield "FlexAttention", _flex, low, cuda
    yield "FlexAttention", _flex, full, cuda


def visible(trees: tuple[Tree, ...], window: int | None) -> Tensor:
    """(T, T) bool: row sees column."""
    found = torch.zeros(trees[-1].end, trees[-1].end, dtype=torch.bool)
    for tree in trees:
        at = tree.start + tree.shared
        for length in tree.branches:
            sequence = [*range(tree.start, tree.start + tree.shared), *range(at, at + length)]
            for position, row in enumerate(sequence):
                first = max(0, position + 1 - window) if window else 0
                found[row, sequence[first : position + 1]] = True
            at += length
    return found


def written_out(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """(1, T, H, D) in float64."""
    repeat = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(repeat, 1), value.double().repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(2, 3)) * SCALE
    scores = scores.masked_fill(~visible(TREES, window).to(q.device), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def _verdict(
    name: str, attend: Attend, reason: str, dtype: torch.dtype, window: int | None, device: torch.device
) -> Verdict:
    kind = str(dtype).removeprefix("torch.")
    if reason:
        return Verdict(name, window, kind, reason=reason)
    generator = torch.Generator().manual_seed(0)
    tokens = TREES[-1].end
    inputs = [
        torch.randn(1, heads, tokens, WIDTH, generator=generator).to(device, dtype).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    weight = torch.randn(1, tokens, HEADS, WIDTH, generator=generator).to(device)
    wanted = written_out(*inputs, window)
    try:
        found = attend(*inputs, AttentionPlan(TREES, device), window)
        gradients = torch.autograd.grad((found.float() * weight).sum(), inputs)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as cause:
        lines = str(cause).splitlines() or [""]
        return Verdict(name, window, kind, reason=f"failed: {type(cause).__name__}: {lines[0][:150]}")
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    gaps = [_gap(one, other) for one, other in zip((found, *gradients), (wanted, *expected), strict=True)]
    return Verdict(name, window, kind, gaps[0], max(gaps[1:]), TOLERANCES[dtype])


def _gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


def _varlen(kernel: Callable[..., Tensor] | None) -> Attend:
    return lambda q, k, v, plan, window: attend_varlen(q, k, v, plan.varlen, SCALE, window, kernel=kernel)


def _dense(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None) -> Tensor:
    return attend_dense(q, k, v, plan, SCALE, window, None, None)


def _products(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None) -> Tensor:
    return TreeAttention.apply(q, k, v, plan.trees, SCALE).transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None) -> Tensor:
    from preftune.model.flex import attend_flex  # compiles kernels

    return attend_flex(q, k, v, plan, SCALE, window, None, None)
