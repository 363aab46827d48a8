"""One design of gpu.py in a process of its own, over protocol.py; runs in either environment.

    {"op": "step", "pairs": [...]}        seconds, loss and peak memory of one optimizer step
    {"op": "phases", "pairs": [...],      its phases (phases.py), and on a GPU a memory snapshot into the file
     "snapshot": file or null}            for pytorch.org/memory_viz
    {"op": "profile", "pairs": [...]}     its kernels (device_kernels.py)
    {"op": "rate", "size": n}             FLOPs a second of a bare product of n x n matrices in this precision
    {"op": "causality"}                   verdicts on the attention backends (causality.py)

The design `none` holds no model and answers the last two.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import phases
import protocol
import torch
from device_kernels import profile_step
from gpu_designs import DTYPES, OPTIMIZERS, GpuDesign, Options
from shapes import Shape
from workload import from_json

PEERS = ("trl-cpo", "trl-dpo", "liger")
PACKAGES = ("torch", "transformers", "accelerate", "trl", "liger-kernel", "triton", "flash-attn", "preftune")


def timed_step(design: GpuDesign, request: dict) -> dict[str, Any]:
    pairs, device = from_json(request["pairs"]), design.options.device
    phases.synchronize(device)
    phases.reset_peak(device)
    started = time.perf_counter()
    loss = design.backward(pairs, phases.unmarked)
    design.update()
    phases.synchronize(device)
    return {
        "seconds": time.perf_counter() - started,
        "loss": loss.item(),
        "peak_gib": phases.peak_gib(device),
    }


def phases_of_step(design: GpuDesign, request: dict) -> dict[str, Any]:
    """The state before the step, and of each kind of phase its seconds together and its highest memory."""
    pairs, device = from_json(request["pairs"]), design.options.device
    snapshot = request["snapshot"] if device.type == "cuda" else None
    if snapshot:
        torch.cuda.memory._record_memory_history(max_entries=200_000)
    phases.synchronize(device)
    state = phases.allocated_gib(device)
    marks = phases.Phases(device)
    design.backward(pairs, marks)
    design.update()
    marks("update")
    if snapshot:
        torch.cuda.memory._dump_snapshot(snapshot)
        torch.cuda.memory._record_memory_history(enabled=None)
    return {"state_gib": state, "phases": [asdict(phase) for phase in marks.found]}


def profile(design: GpuDesign, request: dict) -> dict[str, Any]:
    pairs = from_json(request["pairs"])

    def step() -> None:
        design.backward(pairs, phases.unmarked)
        design.update()

    return profile_step(step, design.options.device)


def measure_rate(size: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The best of some bare products."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        phases.synchronize(device)
        started = time.perf_counter()
        one @ other
        phases.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return {"flops": 2.0 * size**3 / best}


def check_causality(device: torch.device) -> dict[str, Any]:
    from causality import check_backends

    return {"verdicts": [{**asdict(found), "right": found.right} for found in check_backends(device)]}


def build(name: str, options: Options) -> GpuDesign:
    if name in PEERS:
        import gpu_peers

        return gpu_peers.build(name, options)
    import gpu_designs

    return gpu_designs.build(name, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--design", required=True)
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--precision", choices=tuple(DTYPES), required=True)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, required=True)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--per-device", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    asked = parse_arguments()
    answers = protocol.claim_stdout()
    shape = Shape(**asked.shape)
    options = Options(
        shape, asked.device, asked.precision, asked.optimizer, asked.checkpointing, asked.tokens, asked.per_device
    )
    operations: dict[str, Callable[[dict], dict]] = {
        "rate": lambda request: measure_rate(request["size"], options.device, DTYPES[options.precision]),
        "causality": lambda request: check_causality(options.device),
    }
    notes: list[str] = []
    if asked.design != "none":
        design = build(asked.design, options)
        notes = design.notes
        operations |= {
            "step": lambda request: timed_step(design, request),
            "phases": lambda request: phases_of_step(design, request),
            "profile": lambda request: profile(design, request),
        }
    hello = {"versions": protocol.installed_versions(PACKAGES), "notes": notes}
    protocol.serve(answers, operations, {**hello, "device": phases.device_name(options.device)})


if __name__ == "__main__":
    main()
