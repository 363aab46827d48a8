"""bfloat16: whether the device of a run computes in it, or only emulates it, many times slower."""

from __future__ import annotations

import torch


def device_without_bf16(on_cpu: bool = False) -> str | None:
    """The name of the GPU, if one is used and has no bfloat16 of its own (before NVIDIA's Ampere: V100, T4)."""
    if on_cpu or not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return torch.cuda.get_device_name()


def auto_dtype() -> str:
    """The precision that the hardware is made for: bfloat16 on a GPU that has it, else float16; float32 on CPU."""
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if device_without_bf16() is None else "float16"
