"""How the driver and a worker talk: one JSON object a line, requests on stdin, answers on stdout.

A worker holds one model, its optimizer and one precision. It answers first with `{"versions", "notes"}`, then

    {"op": "step", "pairs": [...]}                  one optimizer step, timed
    {"op": "memory", "pairs": [...],                one optimizer step, its peak memory above the training state
     "warm": [...], "accumulating": bool}
    {"op": "quit"}

An answer with the key "error" is a failure. What libraries print goes to stderr.
Only the standard library here: the file is also run in the environment of the peers.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TextIO, TypeVar

from workload import Pair, from_json

if TYPE_CHECKING:
    from torch import Tensor

Rows = TypeVar("Rows")


class Design(Protocol[Rows]):
    """One way to do an optimizer step. `prepare` is never timed: tokenising is done once per data set."""

    notes: list[str]

    def prepare(self, pairs: list[Pair]) -> Rows:
        """Tokenised rows, as the design's data set would hold them."""
        ...

    def backward(self, rows: Rows) -> float:
        """Build the batch, forward, backward; adds to the gradients and gives the loss."""
        ...

    def update(self) -> None:
        """Clip, AdamW, drop the gradients."""
        ...

    def gradient_mib(self) -> float:
        """Memory of all gradients, in MiB."""
        ...

    def sequence_lengths(self, rows: Rows) -> list[int]:
        """Tokens of each chosen and then each rejected sequence, prompt included."""
        ...


def claim_stdout() -> TextIO:
    """The real stdout for answers only; whatever else prints to stdout lands on stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, operations: dict[str, Callable[[dict], dict]], hello: dict) -> None:
    """Answer requests until "quit" or the end of stdin."""
    _answer(answers, hello)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            return
        try:
            _answer(answers, operations[request["op"]](request))
        except Exception:  # the driver shows it and stops; a worker has nobody else to tell
            _answer(answers, {"error": traceback.format_exc()})


def serve_design(answers: TextIO, design: Design[Rows], packages: Iterable[str]) -> None:
    """Serve "step" and "memory" for one design."""
    operations = {
        "step": lambda request: timed_step(design, from_json(request["pairs"])),
        "memory": lambda request: step_memory(
            design, from_json(request["pairs"]), from_json(request["warm"]), request["accumulating"]
        ),
    }
    serve(answers, operations, {"versions": installed_versions(packages), "notes": design.notes})


def timed_step(design: Design[Rows], pairs: list[Pair]) -> dict:
    """Wall and CPU seconds (all threads) of one optimizer step, from tokenised rows to updated weights."""
    rows = design.prepare(pairs)
    gc.collect()
    reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = design.backward(rows)
    design.update()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "loss": loss,
        "peak_rss_mib": peak_mib(),
        "sequence_lengths": design.sequence_lengths(rows),
    }


def step_memory(design: Design[Rows], pairs: list[Pair], warm: list[Pair], accumulating: bool) -> dict:
    """Peak resident memory of a step above weights, gradients, moments and libraries, in MiB.

    A step on the few tokens of `warm` brings the moments about. Then either the gradients are there before the measured
    step, left by an earlier micro-batch (`accumulating`), or they come about in it, as in a step of one micro-batch:
    then all of them are taken off the peak, also where it was passed before the last of them existed.
    """
    warm_rows, rows = design.prepare(warm), design.prepare(pairs)
    design.backward(warm_rows)
    design.update()
    if accumulating:
        design.backward(warm_rows)
    gc.collect()
    return_free_memory()
    base, was_reset = resident_mib(), reset_peak()
    if not accumulating:
        base += design.gradient_mib()
    design.backward(rows)
    design.update()
    peak = peak_mib()
    return {"base_mib": base, "peak_mib": peak, "above_state_mib": peak - base, "peak_was_reset": was_reset}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that this environment has."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def resident_mib() -> float:
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Highest resident memory since `reset_peak`, or since the process began where that is not allowed."""
    return _status_mib("VmHWM")


def reset_peak() -> bool:
    """Let the peak start again at what is resident now; False where the system does not allow it."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # 5 = reset VmHWM, proc(5)
    except OSError:
        return False
    return True


def gradient_mib(parameters: Iterable[Tensor]) -> float:
    """Gradients have the size of their parameters."""
    return sum(each.numel() * each.element_size() for each in parameters if each.requires_grad) / 2**20


def return_free_memory() -> None:
    """Hand freed heap pages back to the system, so that they do not hide in the base."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc: the base is then a little high, for every design alike


def _status_mib(field: str) -> float:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith(field + ":"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):  # no /proc: only the peak of the whole process is known, in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _answer(answers: TextIO, message: dict) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
