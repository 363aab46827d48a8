"""Hidden states -> log-probabilities of the targets, without a logit matrix [N, V].

Logits exist for one tile of rows at a time, in the compute type. A sweep over the tile, in float32 for a few rows at a
time, gives the log-probs and leaves their derivative in the tile. Two ways:
* `chunked_logps`: log-probs out, each tile made again in backward (4 matrix products a tile). For any loss.
* `fused_group_loss`: for a loss that depends on a group only through its own log-probs. The gradient is taken while the
  tile is still there (3 matrix products; of a group longer than a tile, only the last tile is not made again).

What a head does to its logits (scale, soft-cap) is a `HeadTransform`; targets are (N,) ids, states (N, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.model.head_gradient import grad_dtype_of, takes_sums

TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
SWEEP_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}  # float32 logits of a sweep; on CPU what stays in the cache of a core


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


def rows_per_tile(vocabulary: int, device: torch.device, compute: torch.dtype) -> int:
    """Rows whose logits fill one tile; at least 16."""
    return max(16, TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (compute.itemsize * vocabulary))


def _swept_rows(x: Tensor) -> int:
    """Rows of a matrix that are taken at a time in float32."""
    return max(1, SWEEP_BYTES.get(x.device.type, SWEEP_BYTES["cuda"]) // (4 * x.shape[1]))


class _Head:
    """The head for the length of one forward or backward: operands in the compute type, sums in float32 or wider."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        transform: HeadTransform,
        compute: torch.dtype,
        straight: bool = False,
    ) -> None:
        self.compute = compute
        self.weight = weight.detach().to(compute)
        self.bias = None if bias is None else bias.detach()
        self.transform = transform
        self.wide = torch.float64 if compute == torch.float64 else torch.float32
        self.trains_weight = weight.requires_grad
        self.straight = straight  # into weight.grad; see head_gradient.py
        # made by the first tile: a [V, D] of zeros would cost a pass over it
        self.grad_weight: Tensor | None = weight.grad if straight else None
        self.grad_bias = torch.zeros_like(bias, dtype=self.wide) if bias is not None and bias.requires_grad else None

    def swept_tile(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The tile of these states (rows, D), and log p(target), (rows,).

        The tile (rows, V), in the compute type, holds minus the derivative of the log-probs by the products W h: for a
        plain head the probabilities, minus 1 at the target.
        """
        tile = states.to(self.compute) @ self.weight.t()
        logps = torch.empty(tile.shape[0], dtype=self.wide, device=tile.device)
        for rows in _tiles(0, tile.shape[0], _swept_rows(tile)):
            logits, target = tile[rows].to(self.wide), targets[rows, None]
            if self.bias is not None:
                logits += self.bias
            self.transform.apply_(logits)
            probabilities = logits.softmax(-1)
            # of exp(logits - peak); the softmax's own plain float32 sum over many words would bias log p by some 1e-6
            total = probabilities.sum(-1) / probabilities.amax(-1)
            logps[rows] = logits.gather(1, target)[:, 0] - logits.amax(-1) - total.log()
            delta = probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
            if self.transform.softcap is not None:
                delta.mul_(1 - (logits / self.transform.softcap).square_())
            if self.transform.scale != 1.0:
                delta.mul_(self.transform.scale)
            tile[rows] = delta
        return tile, logps

    def backward(self, tile: Tensor, states: Tensor, grad: Tensor) -> Tensor:
        """Gradient of sum_i grad_i · log p_i(target_i) to the states; adds those of weight and bias to their sums.

        `tile` is a swept one. `grad` scales its rows, and does so on the short side of each product; `states` are those
        before rounding to the compute type, so that they are rounded once.
        """
        slopes = -grad[:, None]
        if self.grad_bias is not None:
            for rows in _tiles(0, tile.shape[0], _swept_rows(tile)):
                self.grad_bias += (tile[rows] * slopes[rows]).sum(dim=0)
        if self.trains_weight:
            self._add_weight_gradient(tile.t(), (states * slopes).to(self.compute))
        return (tile @ self.weight) * slopes

    def _add_weight_gradient(self, tile_t: Tensor, states: Tensor) -> None:
        if self.compute == self.wide:
            self.grad_weight = tile_t @ states if self.grad_weight is None else self.grad_weight.addmm_(tile_t, states)
            return
        first = self.grad_weight is None
        if first:
            self.grad_weight = torch.empty_like(self.weight, dtype=self.wide)
        # part by part, or the product would stand in memory beside the sum, whole and in two types
        for words in _tiles(0, tile_t.shape[0], _swept_rows(states)):
            product = tile_t[words] @ states
            if first:
                self.grad_weight[words] = product
            else:
                self.grad_weight[words].add_(product)

    def parameter_gradients(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.straight:
            weight.grad, self.grad_weight = self.grad_weight, None
        grad_weight = None if self.grad_weight is None else self.grad_weight.to(grad_dtype_of(weight))
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
    compute = compute_dtype(states.device.type, states.dtype)
    rows = tile_rows or rows_per_tile(weight.shape[0], states.device, compute)
    return _ChunkedLogps.apply(states, weight, bias, targets, transform, rows)


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, transform, rows):
        compute = compute_dtype(states.device.type, states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            head = _Head(weight.detach(), bias, transform, compute)
            logps = torch.empty(states.shape[0], dtype=head.wide, device=states.device)
            for part in _tiles(0, states.shape[0], rows):
                logps[part] = head.swept_tile(states[part], targets[part])[1]
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.options = transform, rows, compute, takes_sums(weight, head.wide)  # asked here: backward has its own thread
        return logps

    @staticmethod
    def backward(ctx, grad):
        states, weight, bias, targets = ctx.saved_tensors
        transform, rows, compute, straight = ctx.options
        with torch.autocast(states.device.type, enabled=False):
            head = _Head(weight, bias, transform, compute, straight)
            grad_states = torch.empty_like(states)
            for part in _tiles(0, states.shape[0], rows):
                tile, _ = head.swept_tile(states[part], targets[part])
                grad_states[part] = head.backward(tile, states[part], grad[part])
                del tile  # before the next one is made
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
    compute = compute_dtype(states.device.type, states.dtype)
    if compute == torch.float16:
        # the loss scale that keeps float16 gradients above zero comes with the backward pass
        logps = chunked_logps(states, weight, bias, targets, transform, tile_rows)
        sums = logps.new_zeros(len(rows_per_group) * responses).index_add(0, owner, logps).view(-1, responses)
        return group_loss(sums, slice(0, len(rows_per_group))), sums.detach()
    rows = tile_rows or rows_per_tile(weight.shape[0], states.device, compute)
    return _FusedGroupLoss.apply(
        states, weight, bias, targets, transform, owner, responses, tuple(rows_per_group), group_loss, rows
    )


class _FusedGroupLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, transform, owner, responses, rows_per_group, group_loss, rows):
        compute = compute_dtype(states.device.type, states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            wide = torch.float64 if compute == torch.float64 else torch.float32
            head = _Head(weight, bias, transform, compute, straight=takes_sums(weight, wide))
            walk = _GroupWalk(head, states.detach(), targets, owner, rows)
            sums = torch.zeros(len(rows_per_group) * responses, dtype=head.wide, device=states.device)
            loss = torch.zeros((), dtype=head.wide, device=states.device)
            grad_states = torch.empty_like(states)
            for span, groups in _spans(rows_per_group, rows):
                members = slice(groups.start * responses, groups.stop * responses)
                loss += walk.span(span, groups, members, sums[members], group_loss, grad_states)
        ctx.straight = head.straight
        ctx.gradients = (grad_states, *head.parameter_gradients(weight, bias))
        sums = sums.view(-1, responses)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx, grad, _):
        gradients, ctx.gradients = ctx.gradients, None  # consumed in place: a second backward must fail, not be wrong
        if grad.device.type != "cpu" or grad.item() != 1.0:  # reading a GPU's scalar would cost more than the products
            if ctx.straight and grad.device.type == "cpu":
                raise RuntimeError("the loss was scaled before backward, inside straight_into_grad()")
            gradients = tuple(None if kept is None else kept.mul_(grad.to(kept.dtype)) for kept in gradients)
        return *gradients, *[None] * 7


@dataclass(frozen=True)
class _GroupWalk:
    """What stays the same over the spans of one micro-batch."""

    head: _Head
    states: Tensor
    targets: Tensor
    owner: Tensor
    rows: int

    def span(
        self, span: slice, groups: slice, members: slice, sums: Tensor, group_loss: GroupLoss, grad_states: Tensor
    ) -> Tensor:
        """Loss of a few whole groups; fills their `sums` (g*K,) and `grad_states[span]`."""
        odd = span.start + (span.stop - span.start) % self.rows
        *earlier, last = _tiles(span.start, odd, self.rows) + _tiles(odd, span.stop, self.rows)
        logps = [self.swept_tile(part)[1] for part in earlier]  # a group longer than a tile
        tile, last_logps = self.swept_tile(last)
        sums.index_add_(0, self.owner[span] - members.start, torch.cat([*logps, last_logps]))
        with torch.enable_grad():
            leaf = sums.detach().clone().requires_grad_()
            loss = group_loss(leaf.view(groups.stop - groups.start, -1), groups)
            (slopes,) = torch.autograd.grad(loss, leaf)
        grad = slopes[self.owner[span] - members.start]
        grad_states[last] = self.head.backward(tile, self.states[last], grad[last.start - span.start :])
        del tile
        for part in earlier:  # made again
            inner = grad[part.start - span.start : part.stop - span.start]
            grad_states[part] = self.head.backward(self.swept_tile(part)[0], self.states[part], inner)
        return loss.detach()

    def swept_tile(self, part: slice) -> tuple[Tensor, Tensor]:
        return self.head.swept_tile(self.states[part], self.targets[part])


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
