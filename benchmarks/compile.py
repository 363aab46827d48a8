"""What `torch_compile: true` takes and gives: seconds to compile, of a step with and without, and when it pays.

    python benchmarks/compile.py                              table, into benchmarks/results/compile.*
    python benchmarks/compile.py --pairs 4 --mixes chat       a shorter run
    python benchmarks/compile.py --tiny                       a self test of seconds, writes nothing

One process, one model, SimPO on batches of new lengths. Both sides see the same batches, in turns, the compiled layers
switched off for the other one's. Compiling is what the first two batches take over the quickest of the later ones; it
pays after that many seconds divided by what a step saves. Generated code of an earlier run is not reused.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import report

sys.path.insert(0, str(report.ROOT))

import torch
import torch._inductor.config
from step import RESULTS, listed, say
from torch._dynamo.utils import counters
from weights import save_model
from worker_preftune import OwnDesign
from workload import MIXES, Mix, ModelSize, make_pairs

from preftune.model.compiled import compile_layers
from preftune.model.policy import plain_layers

SIZES = {"58M": ModelSize(), "tiny": ModelSize(hidden=32, layers=2, heads=2, mlp=64, vocab=256)}
WARM = 2  # batches in which something is compiled; the second may have another layout of attention's result


@dataclass(frozen=True)
class Sample:
    """One mix in one precision; seconds of a step are medians over the later batches."""

    size: str
    mix: str
    precision: str
    pairs: int
    compile_s: float
    plain_s: float
    compiled_s: float
    graphs: int
    later_graphs: int
    loss_gap: float

    @property
    def pays_after(self) -> float:
        """Steps; infinite where nothing is saved."""
        saved = self.plain_s - self.compiled_s
        return self.compile_s / saved if saved > 0 else math.inf


def measure(size: str, mix: Mix, name: str, precision: str, pairs: int, steps: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        save_model(SIZES[size], Path(folder))
        design = OwnDesign("preftune", Path(folder), precision)
    model = design.model
    batches = [make_pairs(mix, pairs, SIZES[size].vocab, seed) for seed in range(WARM + steps)]
    torch._dynamo.reset()
    counters.clear()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    gaps = []
    with plain_layers(model):
        _timed(design, batches[0])  # what a first step takes for other reasons
    started = time.perf_counter()
    compile_layers(model)
    checked = time.perf_counter() - started
    graphs = 0
    for number, batch in enumerate(batches):
        losses = {}
        for compiled in (True, False) if number % 2 else (False, True):
            with nullcontext() if compiled else plain_layers(model):
                took, losses[compiled] = _timed(design, batch)
            seconds[compiled].append(took)
        gaps.append(abs(losses[True] - losses[False]))
        if number == WARM - 1:
            graphs = counters["stats"]["unique_graphs"]
    compile_s = checked + sum(
        seconds[True][n] - seconds[False][n] for n in range(WARM)
    )  # the same batches, with compiling and without
    return Sample(
        size,
        name,
        precision,
        pairs,
        compile_s,
        statistics.median(seconds[False][WARM:]),
        statistics.median(seconds[True][WARM:]),
        graphs,
        counters["stats"]["unique_graphs"] - graphs,
        max(gaps),
    )


def _timed(design: OwnDesign, batch: list) -> tuple[float, float]:
    """Seconds of forward, backward and clearing, and the loss; the weights stay, so that both sides have the same."""
    started = time.perf_counter()
    loss = design.backward(batch)
    took = time.perf_counter() - started
    design.optimizer.zero_grad()
    return took, loss


def page(context: dict, samples: list[Sample]) -> str:
    header = [
        "model", "mix", "precision", "pairs", "compiling s", "step s, plain", "step s, compiled", "speed-up",
        "pays after steps", "graphs", "compiled later", "loss differs by",
    ]  # fmt: skip
    rows = [
        [
            sample.size, sample.mix, sample.precision, str(sample.pairs), f"{sample.compile_s:.1f}",
            f"{sample.plain_s:.3g}", f"{sample.compiled_s:.3g}", f"{sample.plain_s / sample.compiled_s:.2f}",
            "never" if math.isinf(sample.pays_after) else f"{math.ceil(sample.pays_after)}", str(sample.graphs),
            str(sample.later_graphs), f"{sample.loss_gap:.1e}",
        ]
        for sample in samples
    ]  # fmt: skip
    lines = [
        "# Compiled decoder layers",
        "",
        *report.heading(context, context["threads"]),
        "",
        report.markdown_table(header, rows),
        "",
        "A step is forward and backward; the optimizer's part is not compiled. `compiled later`: graphs that batches "
        "of new lengths made necessary after the first two.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    asked = _parse(argv)
    torch.set_num_threads(asked.threads)
    torch._inductor.config.force_disable_caches = True
    context = {**report.describe_run("compile.py", argv), "threads": asked.threads}
    samples = []
    for name in asked.mixes:
        mix = MIXES[name].shrunk(16) if asked.tiny else MIXES[name]
        for precision in asked.precisions:
            say(f"{name} {precision}")
            samples.append(measure(asked.size, mix, name, precision, asked.pairs, asked.steps))
    context["load_after"] = report.load_average()
    text = page(context, samples)
    print(text, end="")
    out = asked.out or (None if asked.tiny else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        record = {**context, "samples": [asdict(sample) for sample in samples]}
        (out / "compile.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "compile.md").write_text(text, encoding="utf-8")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="58M")
    parser.add_argument("--mixes", type=listed(*MIXES), default=tuple(MIXES))
    parser.add_argument("--precisions", type=listed("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="later batches, which are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, short pairs; writes only where --out says")
    parser.add_argument("--out", type=Path, help=f"folder for compile.md and compile.json (default {RESULTS.name}/)")
    asked = parser.parse_args(argv)
    if asked.tiny:
        asked.size, asked.mixes, asked.precisions, asked.pairs, asked.steps = "tiny", ("chat",), ("fp32",), 2, 3
    return asked


if __name__ == "__main__":
    main()
