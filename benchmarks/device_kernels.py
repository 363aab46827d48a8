"""Where the time of a step goes: torch.profiler's kernels (operations, on a CPU), by family and one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first family whose word is in the kernel's name; matrix products come after attention, which contains them.
FAMILIES = {
    "attention": ("flash", "fmha", "flex", "attention", "varlen"),
    "matrix products": ("gemm", "cutlass", "nvjet", "cublas", "xmma", "::mm", "addmm", "bmm", "matmul", "linear"),
    "softmax": ("softmax", "logsumexp", "cross_entropy", "nll"),
    "optimizer": ("adam", "multi_tensor", "foreach", "clip", "norm_kernel"),
    "copies and casts": ("memcpy", "memset", "copy", "_to_", "cat", "index", "gather", "fill", "zero"),
}
OTHER = "elementwise and other"


def profile_step(step: Callable[[], Any], device: torch.device, count: int = 15) -> dict[str, Any]:
    """Milliseconds of `step` by family and of its `count` longest kernels."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = []
    for event in profiler.key_averages():
        # an operation is given the time of the kernels it starts, so on a GPU the kernels alone are counted
        if on_gpu == (event.device_type == DeviceType.CUDA):
            micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            rows.append((event.key, micros / 1e3, event.count))
    rows.sort(key=lambda row: -row[1])
    families: dict[str, float] = defaultdict(float)
    for name, milliseconds, _ in rows:
        families[family_of(name)] += milliseconds
    top = [{"name": name[:100], "ms": ms, "calls": calls} for name, ms, calls in rows[:count] if ms > 0]
    return {"families": dict(sorted(families.items(), key=lambda item: -item[1])), "kernels": top}


def family_of(kernel: str) -> str:
    name = kernel.lower()
    return next((family for family, words in FAMILIES.items() if any(word in name for word in words)), OTHER)
