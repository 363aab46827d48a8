"""The rate at which this machine does bare matrix products of the model's shapes: the floor under a step (needed.py).

The rate is the best of several products of the same shapes, dtype and number of threads as in the model.

    python benchmarks/floor.py --precision bf16 --threads 2
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import protocol
import torch
from needed import FORMS, Matrix, Rates, Seconds, matrices
from torch import Tensor
from workload import ModelSize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BODY_ROWS, HEAD_ROWS = 2048, 1024  # a micro-batch; a tile of the head, whose full output nobody needs to hold
MIN_REPEATS, MIN_SECONDS = 5, 0.2


def measure_rates(size: ModelSize, precision: str) -> Rates:
    """FLOPs per second by matrix and form."""
    return {matrix.name: {form: _rate(matrix, form, DTYPES[precision]) for form in FORMS} for matrix in matrices(size)}


def _rate(matrix: Matrix, form: str, dtype: torch.dtype) -> dict[str, float]:
    rows = HEAD_ROWS if matrix.in_head else BODY_ROWS
    product = _product(matrix, form, rows, dtype)
    product()  # the first one builds the kernel
    best, spent, repeats = Seconds(math.inf, math.inf), 0.0, 0
    while repeats < MIN_REPEATS or spent < MIN_SECONDS:
        took = _time(product)
        best = Seconds(min(best.wall, took.wall), min(best.cpu, took.cpu))
        spent, repeats = spent + took.wall, repeats + 1
    flops = 2.0 * rows * matrix.outputs * matrix.inputs
    # Clocks tick: a product too small to be timed is not a rate, but must not divide by zero in self tests.
    return {"flops_per_wall_s": flops / max(best.wall, 1e-9), "flops_per_cpu_s": flops / max(best.cpu, 1e-9)}


def _product(matrix: Matrix, form: str, rows: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    inputs = torch.randn(rows, matrix.inputs).to(dtype)
    weight = torch.randn(matrix.outputs, matrix.inputs).to(dtype)
    output_gradient = torch.randn(rows, matrix.outputs).to(dtype)
    return {
        "forward": lambda: inputs @ weight.t(),
        "input_gradient": lambda: output_gradient @ weight,
        "weight_gradient": lambda: output_gradient.t() @ inputs,
    }[form]


def _time(product: Callable[[], Tensor]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    product()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def parse_arguments() -> argparse.Namespace:
    default = ModelSize()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in ("hidden", "layers", "heads", "mlp", "vocab"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--serve", action="store_true", help="answer the driver's requests instead of printing")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    size = ModelSize(arguments.hidden, arguments.layers, arguments.heads, arguments.mlp, arguments.vocab)
    if not arguments.serve:
        torch.set_num_threads(arguments.threads)
        print_rates(measure_rates(size, arguments.precision))
        return
    answers = protocol.claim_stdout()
    torch.set_num_threads(arguments.threads)
    operations = {"rates": lambda request: {"rates": measure_rates(size, arguments.precision)}}
    protocol.serve(answers, operations, {"versions": protocol.installed_versions(["torch"]), "notes": []})


def print_rates(rates: Rates) -> None:
    for name, forms in rates.items():
        row = "  ".join(f"{form} {rate['flops_per_wall_s'] / 1e9:7.0f}" for form, rate in forms.items())
        print(f"{name:14s} {row}   GFLOP/s")


if __name__ == "__main__":
    main()
