"""Seconds and memory of a step by phase (forward, backward, update), on a GPU and, for tests, on a CPU.

`Phases` is called with a name when the phase of that name is over. A design marks its phases whether anyone looks or
not; `unmarked` is for when nobody does, because a mark waits for the device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import protocol
import torch


@dataclass(frozen=True)
class Phase:
    """What happened since the mark before: GiB at the end of it and at its highest."""

    name: str
    seconds: float
    allocated_gib: float
    peak_gib: float


class Phases:
    """Marks of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: list[Phase] = []
        self._restart()

    def __call__(self, name: str) -> None:
        synchronize(self.device)
        seconds = time.perf_counter() - self._started
        self.found.append(Phase(name, seconds, allocated_gib(self.device), peak_gib(self.device)))
        self._restart()

    def _restart(self) -> None:
        synchronize(self.device)
        reset_peak(self.device)
        self._started = time.perf_counter()


def unmarked(name: str) -> None:
    """Nobody looks."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        protocol.reset_peak()


def allocated_gib(device: torch.device) -> float:
    """Memory of live tensors; of the process, on a CPU."""
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else protocol.resident_mib() / 1024


def peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else protocol.peak_mib() / 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
