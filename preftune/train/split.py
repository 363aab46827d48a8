"""AdamW over bfloat16 weights that are the upper half of their float32 master.

A float32 number is 32 bits, a bfloat16 number the upper 16 of them. The optimizer keeps the other 16 bits, so weight
and low word together are the master, exactly, in 4 bytes instead of 6:

    master bits = (bits of the weight << 16) + low word,   low word in -32768..32767

so that the weight is the master rounded to the nearest. A tie goes away from zero (`Tensor.to` takes the even
neighbour), else 16 bits would not do. The step is `torch.optim.adamw` itself on a float32 part of the tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from preftune.train.master import take_float32_gradients
from preftune.train.moments import BLOCK, FIRST, MOMENTS, SECOND, MomentType, Noise, Scratch, State

PART = {"cpu": BLOCK << 9, "cuda": BLOCK << 15}  # numbers stepped at a time; on CPU what stays in the cache of a core


def join_words(high: Tensor, low: Tensor, scratch: Scratch | None = None) -> Tensor:
    """The float32 master of flat bfloat16 weights and their int16 low words."""
    scratch = scratch or Scratch(high.numel(), high.device)
    bits = scratch("master", high.numel(), torch.int32).copy_(high.view(torch.int16)).bitwise_left_shift_(16)
    return bits.add_(scratch("word", high.numel(), torch.int32).copy_(low)).view(torch.float32)


def split_words_(high: Tensor, low: Tensor, master: Tensor, scratch: Scratch | None = None) -> None:
    """Set weights and low words from the master, which is used up."""
    scratch = scratch or Scratch(high.numel(), high.device)
    bits = master.view(torch.int32)
    upper = torch.add(bits, 0x8000, out=scratch("word", high.numel(), torch.int32)).bitwise_right_shift_(16)
    high.view(torch.int16).copy_(upper)
    low.copy_(bits.sub_(upper.bitwise_left_shift_(16)))


class SplitAdamW(torch.optim.Optimizer):
    """AdamW that equals `torch.optim.AdamW` on a float32 master bit for bit, as long as the moments are in float32.

    Args:
        params: parameters or groups, in bfloat16 (which get a low word) or float32 (which are stepped as they are).
        moments: how the moments are kept: float32, bfloat16 or 8bit; see `preftune.train.moments`.
        lr, betas, eps, weight_decay, fused: as for AdamW.

    Bytes a parameter beside its gradient: 12, 8 or 6 (of float32 weights 12, 8 or 6), where a float32 master takes 14.
    In one process gradients arrive in float32, as for `MasterAdamW`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        moments: MomentType = "float32",
        fused: bool | None = None,
    ) -> None:
        self.moments = MOMENTS[moments]
        self.scratch: dict[torch.device, Scratch] = {}  # for the length of a step
        self.noises: dict[torch.device, Noise] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": fused})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.bfloat16, torch.float32):
                raise ValueError(f"SplitAdamW steps bfloat16 and float32 weights, found {parameter.dtype}")
            take_float32_gradients(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        self.scratch, self.noises = {}, {}
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        weights, gradient = parameter.detach().contiguous().view(-1), parameter.grad.reshape(-1)
        state = self.state[parameter]
        if not state:
            state.update(self._fresh(weights))
        state["step"] += 1
        for part in _parts(weights):
            self._step_part(weights[part], gradient[part].float(), state, part, group)
        if not parameter.is_contiguous():
            parameter.copy_(weights.view(parameter.shape))

    def _fresh(self, weights: Tensor) -> dict[str, Any]:
        low = {"low": torch.zeros_like(weights, dtype=torch.int16)} if weights.dtype == torch.bfloat16 else {}
        return {"step": 0, **low, **self.moments.fresh(weights)}

    def _step_part(
        self, weights: Tensor, gradient: Tensor, state: dict[str, Any], part: slice, group: dict[str, Any]
    ) -> None:
        scratch, noise = self._tools(state["step"], weights.device)
        low = state["low"][part] if "low" in state else None
        master = weights if low is None else join_words(weights, low, scratch)
        first, second = (self.moments.read(state, name, part, scratch) for name in (FIRST, SECOND))
        before = torch.full((), state["step"] - 1, dtype=torch.float32, device=weights.device)
        adamw(
            [master],
            [gradient],
            [first],
            [second],
            [],
            [before],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if low is not None:
            split_words_(weights, low, master, scratch)
        self.moments.write(state, FIRST, part, first, scratch, noise)
        self.moments.write(state, SECOND, part, second, scratch, noise)

    def _tools(self, step: int, device: torch.device) -> tuple[Scratch, Noise]:
        longest = _longest(device)
        if device not in self.scratch:
            self.scratch[device] = Scratch(longest, device)
        if device not in self.noises or self.noises[device].step != step:
            self.noises[device] = Noise(step, longest, device)
        return self.scratch[device], self.noises[device]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would turn the words and codes into the type of the weights."""
        super().load_state_dict(state_dict)
        saved: dict[int, State] = state_dict["state"]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in saved.get(number, {}).items():
                kept = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                self.state[parameter][name] = kept


def _longest(device: torch.device) -> int:
    return PART.get(device.type, PART["cuda"])


def _parts(values: Tensor) -> Iterator[slice]:
    size = _longest(values.device)
    return (slice(start, min(start + size, values.numel())) for start in range(0, values.numel(), size))
