"""Hidden states -> log-probabilities of the targets, without a logit matrix [N, V].

Logits exist for one tile of rows at a time, in float32. Two ways:
* `chunked_logps`: log-probs out, each tile made again in backward (4 matrix products a tile). For any loss.
* `fused_group_loss`: for a loss that depends on a group only through its own log-probs. The gradient is taken while the
  tile's logits are still there (3 matrix products, nothing made twice).

What a head does to its logits (scale, soft-cap) is a `HeadTransform`; targets are (N,) ids, states (N, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class HeadTransform:
    """logits = softcap · tanh(scale · (W h + b) / softcap); softcap None leaves the tanh out."""

    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of(config: object) -> HeadTransform:
        """Read from a transformers configuration: Cohere, Granite, Falcon-H1 and Gemma have one."""
        scale = _number(config, "logit_scale", "lm_head_multiplier") or 1.0
        scale /= _number(config, "logits_scaling") or 1.0
        return HeadTransform(
            scale, _number(config, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        )

    def apply_(self, logits: Tensor) -> Tensor:
        """In place on a fresh tile."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def _number(config: object, *names: str) -> float | None:
    """The first of these settings that is a number other than 0."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, (int, float)) and value), None)


def rows_per_tile(vocabulary: int, device: torch.device) -> int:
    """Rows whose float32 logits fill one tile; at least 16."""
    return max(16, TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (4 * vocabulary))


class _Head:
    """The head for the length of one forward or backward: operands in the compute type, sums in float32 or wider."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transform: HeadTransform, compute: torch.dtype) -> None:
        self.compute = compute
        self.weight = weight.detach().to(compute)
        self.bias = None if bias is None else bias.detach()
        self.transform = transform
        self.wide = torch.float64 if compute == torch.float64 else torch.float32
        self.trains_weight = weight.requires_grad
        self.grad_weight: Tensor | None = None  # made by the first tile: a [V, D] of zeros would cost a pass over it
        self.grad_bias = torch.zeros_like(bias, dtype=self.wide) if bias is not None and bias.requires_grad else None

    def logits(self, states: Tensor) -> Tensor:
        tile = (states @ self.weight.t()).to(self.wide)
        if self.bias is not None:
            tile += self.bias
        return self.transform.apply_(tile)

    def softmax_(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a tile of logits into probabilities in place; also the targets' log-probs, (rows,)."""
        peak = logits.amax(dim=-1, keepdim=True)
        picked = logits.gather(1, targets[:, None]) - peak
        total = logits.sub_(peak).exp_().sum(dim=-1, keepdim=True)
        return logits.div_(total), (picked - total.log())[:, 0]

    def backward_(
        self, probabilities: Tensor, slope: Tensor | None, states: Tensor, targets: Tensor, grad: Tensor
    ) -> Tensor:
        """Gradient of sum_i grad_i · log p_i(target_i) to the states; adds those of weight and bias to their sums.

        `probabilities` is consumed. `slope` is the soft-cap's derivative at the tile, None without one.
        """
        delta = probabilities.mul_(-grad[:, None])
        delta.scatter_add_(1, targets[:, None], grad[:, None].to(delta.dtype))
        if slope is not None:
            delta.mul_(slope)
        if self.transform.scale != 1.0:
            delta.mul_(self.transform.scale)
        if self.grad_bias is not None:
            self.grad_bias += delta.sum(dim=0)
        narrow = delta.to(self.compute)
        if self.trains_weight:
            if self.grad_weight is None:
                self.grad_weight = (narrow.t() @ states).to(self.wide)
            elif self.compute == self.wide:
                self.grad_weight.addmm_(narrow.t(), states)
            else:
                self.grad_weight.add_(narrow.t() @ states)
        return narrow @ self.weight

    def slope(self, logits: Tensor) -> Tensor | None:
        softcap = self.transform.softcap
        return None if softcap is None else 1 - (logits / softcap).square()

    def tile_backward(self, states: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
        """Make the tile again and take its gradient."""
        logits = self.logits(states)
        slope = self.slope(logits)
        probabilities, _ = self.softmax_(logits, targets)
        return self.backward_(probabilities, slope, states, targets, grad)

    def parameter_gradients(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        # a weight that takes its gradient in float32 (train/master.py) gets it unrounded
        asked = getattr(weight, "grad_dtype", None) or weight.dtype
        grad_weight = None if self.grad_weight is None else self.grad_weight.to(asked)
        return grad_weight, None if self.grad_bias is None or bias is None else self.grad_bias.to(bias.dtype)


def compute_dtype(kind: str, dtype: torch.dtype) -> torch.dtype:
    """The precision of matrix products on a device of this kind: autocast's where it is on."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype


def _tiles(start: int, stop: int, rows: int) -> list[slice]:
    return [slice(a, min(a + rows, stop)) for a in range(start, stop, rows)]


def chunked_logps(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: HeadTransform,
    tile_rows: int | None = None,
) -> Tensor:
    """log p(target) of each state, (N,) float32 nats (float64 for a float64 model), differentiable.

    Args:
        states (N, D); weight (V, D); bias (V,) or None; targets (N,).
        tile_rows: rows in a tile, by memory when None.
    """
    rows = tile_rows or rows_per_tile(weight.shape[0], states.device)
    return _ChunkedLogps.apply(states, weight, bias, targets, transform, rows)


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, transform, rows):
        compute = compute_dtype(states.device.type, states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            head = _Head(weight.detach(), bias, transform, compute)
            narrow = states.detach().to(compute)
            logps = torch.empty(states.shape[0], dtype=head.wide, device=states.device)
            for tile in _tiles(0, states.shape[0], rows):
                _, logps[tile] = head.softmax_(head.logits(narrow[tile]), targets[tile])
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.options = transform, rows, compute
        return logps

    @staticmethod
    def backward(ctx, grad):
        states, weight, bias, targets = ctx.saved_tensors
        transform, rows, compute = ctx.options
        with torch.autocast(states.device.type, enabled=False):
            head = _Head(weight, bias, transform, compute)
            narrow = states.detach().to(compute)
            grad_states = torch.empty_like(states)
            for tile in _tiles(0, states.shape[0], rows):
                grad_states[tile] = head.tile_backward(narrow[tile], targets[tile], grad[tile])
        return grad_states, *head.parameter_gradients(weight, bias), None, None, None


GroupLoss = Callable[[Tensor, slice], Tensor]


def fused_group_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: HeadTransform,
    owner: Tensor,
    responses: int,
    rows_per_group: Sequence[int],
    group_loss: GroupLoss,
    tile_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and log-prob sums of a micro-batch, with the head's gradient taken in the forward pass.

    Args:
        states, weight, bias, targets, transform: as `chunked_logps`, targets ordered group by group.
        owner: (N,) response number of each target, K numbers a group.
        responses: K, responses of a group.
        rows_per_group: targets of each group, on the host.
        group_loss: (sums (g, K), which groups) -> scalar; must be a sum over groups of what each group alone decides.

    Returns:
        loss, a scalar to call backward on, and sums (G, K), detached.
    """
    if compute_dtype(states.device.type, states.dtype) == torch.float16:
        # the loss scale that keeps float16 gradients above zero comes with the backward pass
        logps = chunked_logps(states, weight, bias, targets, transform, tile_rows)
        sums = logps.new_zeros(len(rows_per_group) * responses).index_add(0, owner, logps).view(-1, responses)
        return group_loss(sums, slice(0, len(rows_per_group))), sums.detach()
    rows = tile_rows or rows_per_tile(weight.shape[0], states.device)
    return _FusedGroupLoss.apply(
        states, weight, bias, targets, transform, owner, responses, tuple(rows_per_group), group_loss, rows
    )


class _FusedGroupLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, transform, owner, responses, rows_per_group, group_loss, rows):
        compute = compute_dtype(states.device.type, states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            head = _Head(weight, bias, transform, compute)
            walk = _GroupWalk(head, states.detach().to(compute), targets, owner, rows)
            sums = torch.zeros(len(rows_per_group) * responses, dtype=head.wide, device=states.device)
            loss = torch.zeros((), dtype=head.wide, device=states.device)
            grad_states = torch.empty_like(states)
            for span, groups in _spans(rows_per_group, rows):
                members = slice(groups.start * responses, groups.stop * responses)
                loss += walk.span(span, groups, members, sums[members], group_loss, grad_states)
        ctx.gradients = (grad_states, *head.parameter_gradients(weight, bias))
        sums = sums.view(-1, responses)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx, grad, _):
        gradients, ctx.gradients = ctx.gradients, None  # consumed in place: a second backward must fail, not be wrong
        if grad.device.type != "cpu" or grad.item() != 1.0:  # reading a GPU's scalar would cost more than the products
            gradients = tuple(None if kept is None else kept.mul_(grad.to(kept.dtype)) for kept in gradients)
        return *gradients, *[None] * 7


@dataclass(frozen=True)
class _GroupWalk:
    """What stays the same over the spans of one micro-batch; `states` in the compute type."""

    head: _Head
    states: Tensor
    targets: Tensor
    owner: Tensor
    rows: int

    def span(
        self, span: slice, groups: slice, members: slice, sums: Tensor, group_loss: GroupLoss, grad_states: Tensor
    ) -> Tensor:
        """Loss of a few whole groups; fills their `sums` (g*K,) and `grad_states[span]`."""
        tiles = _tiles(span.start, span.stop, self.rows)
        kept = None
        logps = []
        for tile in tiles:
            logits = self.head.logits(self.states[tile])
            slope = self.head.slope(logits) if len(tiles) == 1 else None
            probabilities, tile_logps = self.head.softmax_(logits, self.targets[tile])
            logps.append(tile_logps)
            if len(tiles) == 1:
                kept = probabilities, slope
            del logits, probabilities
        local = self.owner[span] - members.start
        sums.index_add_(0, local, torch.cat(logps))
        with torch.enable_grad():
            leaf = sums.detach().clone().requires_grad_()
            loss = group_loss(leaf.view(groups.stop - groups.start, -1), groups)
            (slopes,) = torch.autograd.grad(loss, leaf)
        grad = slopes[local]
        if kept is not None:  # the whole span was one tile, and its probabilities are still here
            probabilities, slope = kept
            grad_states[span] = self.head.backward_(probabilities, slope, self.states[span], self.targets[span], grad)
        else:  # a group longer than a tile: its tiles are made again
            for tile in tiles:
                part = grad[tile.start - span.start : tile.stop - span.start]
                grad_states[tile] = self.head.tile_backward(self.states[tile], self.targets[tile], part)
        return loss.detach()


def _spans(rows_per_group: Sequence[int], rows: int) -> list[tuple[slice, slice]]:
    """(rows, groups) of consecutive whole groups that fill up to one tile; a longer group stands alone."""
    found = []
    start = first = 0
    at = 0
    for number, count in enumerate(rows_per_group):
        if at > start and at + count - start > rows:
            found.append((slice(start, at), slice(first, number)))
            start, first = at, number
        at += count
    return [*found, (slice(start, at), slice(first, len(rows_per_group)))]
