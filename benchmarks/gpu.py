"""A step of SimPO on a GPU: speed, MFU, memory by phase and kernels, of our roads, TRL's trainers and Liger's loss.

    benchmarks/install_peers.sh                                 once: the peers in an environment of their own
    python benchmarks/gpu.py                                    a Llama of 8B, into benchmarks/results/gpu.*
    python benchmarks/gpu.py --shape 1b --layers 8              a smaller one, for a smaller GPU
    python benchmarks/gpu.py --designs packed,padded --optimizer none
    python benchmarks/gpu.py --device cpu --tiny                a self test, writes nothing

The model is random, built from a config in bfloat16. First the attention backends are held against masks that are
written out (causality.py). Then every design runs in a process of its own, one after the other, because few models fit
beside each other: a dropped step of each mix, the timed ones, one whose memory is looked at by phase and one under the
profiler. A design that fails (out of memory, a package that is missing) is a line of the table. MFU counts useful
operations only (shapes.py): every prompt once, the head on scored rows. Speeds of other processes are taken minutes
apart; the losses on the same pairs say whether they did the same work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import report
from gpu_page import render
from pool import Worker, WorkerError
from shapes import SHAPES, Shape, peak_of
from step import PEERS, RESULTS, has_peer, listed, say
from workload import MIXES, Mix, Pair, make_pairs, to_json

OWN = ("packed", "flex", "padded", "naive")
PEER_DESIGNS = {"trl-cpo": "trl", "trl-dpo": "trl", "liger": "liger-kernel"}  # the package that each needs
CAP = 2048  # tokens of a prompt with its response


@dataclass(frozen=True)
class GpuPlan:
    """What is measured."""

    designs: tuple[str, ...]
    mixes: dict[str, Mix]
    shape: Shape
    device: str
    precision: str
    optimizer: str
    checkpointing: bool
    pairs: int
    per_device: int
    tokens: int
    repeats: int
    rate_size: int

    def batch(self, mix: str, repetition: int) -> list[Pair]:
        return make_pairs(self.mixes[mix], self.pairs, self.shape.vocab, seed=1000 + repetition)


@dataclass
class GpuSample:
    """One design on one mix; `failed` says why where there is nothing."""

    design: str
    mix: str
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_gib: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class GpuResults:
    """Everything measured."""

    device: str
    peak_flops: float | None
    measured_flops: float
    verdicts: list[dict[str, Any]]
    samples: list[GpuSample] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


def run(plan: GpuPlan, snapshots: Path | None) -> GpuResults:
    """The backends first, then one design after the other."""
    say("attention backends and product rate")
    with start("none", plan) as worker:
        rate = worker.ask("rate", size=plan.rate_size)["flops"]
        device = worker.hello["device"]
        results = GpuResults(device, peak_of(device), rate, worker.ask("causality")["verdicts"])
    for design in plan.designs:
        results.samples += measure(design, plan, results, snapshots)
    return results


def measure(design: str, plan: GpuPlan, results: GpuResults, snapshots: Path | None) -> list[GpuSample]:
    package = PEER_DESIGNS.get(design)
    if package and not has_peer(package):
        return [GpuSample(design, next(iter(plan.mixes)), failed=f"{package} is not installed: install_peers.sh")]
    samples = []
    try:
        with start(design, plan) as worker:
            results.versions[design], results.notes[design] = worker.hello["versions"], worker.hello["notes"]
            for mix in plan.mixes:
                say(f"{design}: {mix}")
                samples.append(GpuSample(design, mix))
                measure_mix(worker, plan, samples[-1], snapshots)
    except WorkerError as error:
        failed = reason_of(error)
        say(f"{design}: {failed}")
        if not samples:
            samples = [GpuSample(design, next(iter(plan.mixes)))]
        samples[-1].failed = failed
    return samples


def measure_mix(worker: Worker, plan: GpuPlan, sample: GpuSample, snapshots: Path | None) -> None:
    for repetition in range(plan.repeats + 1):
        answer = worker.ask("step", pairs=to_json(plan.batch(sample.mix, repetition)))
        if repetition:
            sample.seconds.append(answer["seconds"])
            sample.losses.append(answer["loss"])
            sample.peak_gib = max(sample.peak_gib, answer["peak_gib"])
    rows = to_json(plan.batch(sample.mix, 1))
    snapshot = str(snapshots / f"{sample.design}-{sample.mix}.pickle") if snapshots else None
    sample.memory = worker.ask("phases", pairs=rows, snapshot=snapshot)
    sample.profile = worker.ask("profile", pairs=rows)


def reason_of(error: WorkerError) -> str:
    """The line of a traceback that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Interrupt"))]
    return (named or lines)[-1][:200]


def start(design: str, plan: GpuPlan) -> Worker:
    python = PEERS / "bin" / "python" if design in PEER_DESIGNS else Path(sys.executable)
    words = ["--design", design, "--shape", json.dumps(plan.shape.to_dict()), "--device", plan.device]
    words += ["--precision", plan.precision, "--optimizer", plan.optimizer]
    words += ["--tokens", str(plan.tokens), "--per-device", str(plan.per_device)]
    words += ["--checkpointing"] if plan.checkpointing else []
    return Worker(design, python, "worker_gpu.py", words, threads=2 if plan.device == "cpu" else 8)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default 8b; tiny with --tiny")
    parser.add_argument("--layers", type=int, help="fewer (or more) layers than the shape has")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--optimizer",
        choices=("adamw", "master", "none"),
        default="adamw",
        help="adamw in the weights' type; master: float32 masters; none: gradients are dropped",
    )
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in every design")
    parser.add_argument("--designs", type=listed(*OWN, *PEER_DESIGNS), help="default: all; no flex, no peers on a CPU")
    parser.add_argument("--mixes", type=listed(*MIXES), default=tuple(MIXES))
    parser.add_argument("--pairs", type=int, help="pairs a step (default 32; 4 with --tiny)")
    parser.add_argument("--per-device", type=int, default=2, help="pairs of a micro-batch of the designs that pad")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a micro-batch of those that pack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--snapshots", action="store_true", help="write memory snapshots beside the results (CUDA)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on short pairs; writes only where --out says")
    parser.add_argument("--out", type=Path, help=f"folder for gpu.md and gpu.json (default {RESULTS.name}/)")
    return parser.parse_args(argv)


def build_plan(arguments: argparse.Namespace) -> GpuPlan:
    tiny, on_cpu = arguments.tiny, arguments.device == "cpu"
    usual = tuple(name for name in OWN if name != "flex") if on_cpu else (*OWN, *PEER_DESIGNS)
    mixes = {name: replace(MIXES[name], cap=CAP) for name in arguments.mixes}
    return GpuPlan(
        designs=arguments.designs or usual,
        mixes={name: mix.shrunk(16) for name, mix in mixes.items()} if tiny else mixes,
        shape=SHAPES[arguments.shape or ("tiny" if tiny else "8b")].with_layers(arguments.layers),
        device=arguments.device,
        precision=arguments.precision,
        optimizer=arguments.optimizer,
        checkpointing=arguments.checkpointing,
        pairs=arguments.pairs or (4 if tiny else 32),
        per_device=arguments.per_device,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        rate_size=256 if tiny else 8192 if not on_cpu else 2048,
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    plan = build_plan(arguments)
    if plan.device == "cpu" and "flex" in plan.designs:
        print("gpu.py: the design 'flex' needs a CUDA device. Leave it out of --designs.", file=sys.stderr)
        return 2
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    context = report.describe_run("gpu.py", argv)
    try:
        results = run(plan, out if arguments.snapshots else None)
    except WorkerError as error:
        remedy = " Without a CUDA device, give --device cpu." if plan.device == "cuda" else ""
        print(f"gpu.py: {reason_of(error)}{remedy}", file=sys.stderr)
        return 1
    context["load_after"] = report.load_average()
    page = render(plan, results, context)
    print(page)
    if out is not None:
        record = {**context, "plan": asdict(plan), **asdict(results)}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "gpu.md").write_text(page, encoding="utf-8")
        say(f"wrote {out / 'gpu.md'} and gpu.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
