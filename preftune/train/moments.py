"""How an optimizer keeps its moments: in float32, in bfloat16, or in 8 bits.

A moment is read into float32 a part of a tensor at a time, and written back. What does not fit the smaller type is
rounded up or down at random, so that it is right on average: the second moment changes by a thousandth a step, less
than half a digit of either type, and rounded to the nearest it would never change again.

8 bits: blocks of 256 numbers with one float32 scale, their largest magnitude. The first moment is scale * q|q| / 127^2
with q in -127..127, the second scale * (q / 255)^4 with q in 0..255, so that small numbers have small steps.
"""

from __future__ import annotations

import random
from typing import Protocol

import torch
from torch import Tensor

from preftune.recipe.schema import MomentType

State = dict[str, Tensor]
FIRST, SECOND = "exp_avg", "exp_avg_sq"
BLOCK = 256
_SIGNED, _POSITIVE = 127, 255  # the largest codes
_TINY = torch.finfo(torch.float32).tiny


class Scratch:
    """Room for what is computed of one part, by name; given out again for the next part.

    size: of the longest part.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str, count: int, kind: torch.dtype = torch.float32) -> Tensor:
        """(count,), not filled."""
        if name not in self.held:
            self.held[name] = torch.empty(self.size, dtype=kind, device=self.device)
        return self.held[name][:count]


class Noise:
    """Random numbers of one step: a block of them, which every part enters at another place.

    They are a function of the step alone, the same on every rank and after a resume.
    """

    def __init__(self, step: int, longest: int, device: torch.device) -> None:
        self.step, self.longest = step, longest
        self.places = random.Random(step)
        drawn = torch.Generator(device).manual_seed(step)
        self.block = torch.randint(65536, (2 * longest,), generator=drawn, device=device, dtype=torch.int32)

    def bits(self, count: int) -> Tensor:
        """(count,) int32 in 0..65535."""
        place = self.places.randrange(self.longest)
        return self.block[place : place + count]


class Moments(Protocol):
    """Both moments of a parameter, under the names that torch's optimizers use."""

    def fresh(self, like: Tensor) -> State:
        """Zeros, for a flat parameter."""

    def read(self, state: State, name: str, part: slice, scratch: Scratch) -> Tensor:
        """(n,) float32, to be changed in place."""

    def write(self, state: State, name: str, part: slice, values: Tensor, scratch: Scratch, noise: Noise) -> None:
        """Keep what `read` gave; it is used up."""


class Float32:
    def fresh(self, like: Tensor) -> State:
        return {name: torch.zeros_like(like, dtype=torch.float32) for name in (FIRST, SECOND)}

    def read(self, state: State, name: str, part: slice, scratch: Scratch) -> Tensor:
        return state[name][part]

    def write(self, state: State, name: str, part: slice, values: Tensor, scratch: Scratch, noise: Noise) -> None:
        """Nothing to do: what was read is the moment itself."""


class BFloat16:
    def fresh(self, like: Tensor) -> State:
        return {name: torch.zeros_like(like, dtype=torch.bfloat16) for name in (FIRST, SECOND)}

    def read(self, state: State, name: str, part: slice, scratch: Scratch) -> Tensor:
        return scratch(name, part.stop - part.start).copy_(state[name][part])

    def write(self, state: State, name: str, part: slice, values: Tensor, scratch: Scratch, noise: Noise) -> None:
        bits = values.view(torch.int32).add_(noise.bits(values.numel()))  # carries into the upper half, or does not
        state[name][part].view(torch.int16).copy_(bits.bitwise_right_shift_(16))


class EightBit:
    def fresh(self, like: Tensor) -> State:
        blocks = -(-like.numel() // BLOCK)
        codes = {FIRST: torch.int8, SECOND: torch.uint8}
        state = {name: torch.zeros(blocks, BLOCK, dtype=kind, device=like.device) for name, kind in codes.items()}
        return {**state, **{f"{name}_scale": torch.zeros(blocks, 1, device=like.device) for name in codes}}

    def read(self, state: State, name: str, part: slice, scratch: Scratch) -> Tensor:
        rows = _rows(part)
        codes, scale = state[name][rows], state[f"{name}_scale"][rows]
        values = scratch(name, codes.numel()).view(codes.shape).copy_(codes)
        if name == FIRST:
            values.mul_(torch.abs(values, out=_room(scratch, "one", values))).mul_(scale / _SIGNED**2)
        else:
            values.mul_(values)
            values.mul_(values).mul_(scale / _POSITIVE**4)
        return values.view(-1)[: part.stop - part.start]

    def write(self, state: State, name: str, part: slice, values: Tensor, scratch: Scratch, noise: Noise) -> None:
        rows = _rows(part)
        blocks = scratch(name, state[name][rows].numel()).view(-1, BLOCK)  # where `read` put them, whole blocks
        blocks.view(-1)[values.numel() :] = 0.0
        chance = _room(scratch, "four", blocks).view(-1).copy_(noise.bits(blocks.numel())).add_(0.5).div_(65536)
        size = torch.abs(blocks, out=_room(scratch, "one", blocks))
        scale = size.amax(dim=1, keepdim=True)
        size.div_(scale.clamp(min=_TINY))  # 0..1
        if name == FIRST:
            codes = _round_root_(size.mul_(_SIGNED**2), chance.view_as(size), scratch)
            codes.clamp_(0, _SIGNED).copysign_(blocks)
        else:
            codes = _round_fourth_root_(size.mul_(_POSITIVE**4), chance.view_as(size), scratch).clamp_(0, _POSITIVE)
        state[name][rows].copy_(codes)
        state[f"{name}_scale"][rows] = scale


def _rows(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def _room(scratch: Scratch, name: str, like: Tensor) -> Tensor:
    return scratch(name, like.numel()).view(like.shape)


def _round_root_(values: Tensor, chance: Tensor, scratch: Scratch) -> Tensor:
    """Whole q below or above the square root, so that the mean of q^2 is the value."""
    below = torch.sqrt(values, out=_room(scratch, "two", values)).floor_()
    power = torch.mul(below, below, out=_room(scratch, "three", values))
    rest = values.sub_(power)
    gap = torch.add(below, below, out=power).add_(1)
    return below.add_(rest.div_(gap).add_(chance).floor_())


def _round_fourth_root_(values: Tensor, chance: Tensor, scratch: Scratch) -> Tensor:
    """Whole q below or above the fourth root, so that the mean of q^4 is the value."""
    below = torch.sqrt(values, out=_room(scratch, "two", values)).sqrt_().floor_()
    power = torch.mul(below, below, out=_room(scratch, "three", values))
    power.mul_(power)
    rest = values.sub_(power)
    above = torch.add(below, 1, out=_room(scratch, "five", values))
    above.mul_(above)
    gap = above.mul_(above).sub_(power)
    return below.add_(rest.div_(gap).add_(chance).floor_())


MOMENTS: dict[MomentType, Moments] = {"float32": Float32(), "bfloat16": BFloat16(), "8bit": EightBit()}
