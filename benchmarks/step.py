"""One optimizer step of SimPO: preftune against TRL's CPOTrainer and Liger's fused loss, on this machine.

    benchmarks/install_peers.sh                                   once: TRL and Liger in an environment of their own
    python benchmarks/step.py                                     the full table, into benchmarks/results/
    python benchmarks/step.py --pairs 3 --designs preftune,trl,naive
    python benchmarks/step.py --mixes chat --precision bf16 --repeats 5 --takes 3
    python benchmarks/step.py --tiny                              a self test of seconds, writes nothing

Every design is a process that holds the same weights. They take turns on the same batches (A B C, B C A, ...), one at a
time; the first step of each on each mix is dropped. With --takes N every batch is gone through N times and the quickest
counts, since what else a machine does only adds time. The rate of the bare matrix products is measured between the
repetitions. Peak memory is taken in fresh processes. workload.py, needed.py and protocol.py say what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import datetime
from itertools import product
from pathlib import Path

import report
from needed import Seconds, floor_seconds
from page import render
from plan import MemorySample, Plan, Results, StepSample, memory_batches
from pool import Worker, WorkerError
from workload import MIXES, ModelSize, Pair, exact_pairs, to_json, useful_tokens

DESIGNS = ("preftune", "trl", "liger")
ON_REQUEST = ("naive", "padded")
PEER_WORKERS = {"trl": "worker_trl.py", "liger": "worker_liger.py"}
PEER_PACKAGES = {"trl": "trl", "liger": "liger-kernel"}
RESULTS = report.ROOT / "benchmarks" / "results"
PEERS = Path(os.environ.get("BENCH_ENV", report.ROOT / ".bench-env"))
NO_PEER = (
    "{script}: the design '{design}' needs {package} in the peers' environment, which is not there. Make it with\n"
    "    benchmarks/install_peers.sh\n"
    "or measure without it: --designs preftune,naive"
)
TINY_FACTOR = 16  # self test: lengths, and the model, shrunk about so much


def measure_speed(plan: Plan, weights: Path, precision: str, results: Results) -> None:
    """Interleaved steps of all designs in one precision."""
    with contextlib.ExitStack() as stack:
        workers = {
            design: stack.enter_context(start_design(design, plan, weights, precision)) for design in plan.designs
        }
        floor = stack.enter_context(start_floor(plan, precision))
        for design, worker in workers.items():
            results.introduce(design, worker)
        for mix in plan.mixes:
            for repetition in range(plan.repeats + 1):
                say(f"{precision} {mix}: {'warm-up' if repetition == 0 else f'repetition {repetition}'}")
                batch = plan.batch(mix, repetition)
                answers = take(plan, workers, batch, repetition)
                if repetition == 0:
                    continue
                when = {"precision": precision, "mix": mix, "repetition": repetition}
                rates = floor.ask("rates")["rates"]
                results.floors.append({**when, "rates": rates})
                needed = floor_seconds(plan.size, batch, rates)
                for design in plan.designs:
                    results.steps.append(step_sample(design, batch, answers[design], needed, when))


def take(plan: Plan, workers: dict[str, Worker], batch: list[Pair], repetition: int) -> dict[str, dict]:
    """Each design's answer to one batch: its quickest take, with the loss of the first, when weights were equal."""
    rows = to_json(batch)
    takes = [
        {design: workers[design].ask("step", pairs=rows) for design in plan.turn(repetition + number)}
        for number in range(plan.takes if repetition else 1)
    ]

    def quickest(design: str) -> dict:
        return min((found[design] for found in takes), key=lambda answer: answer["wall_s"])

    return {design: quickest(design) | {"loss": takes[0][design]["loss"]} for design in plan.designs}


def step_sample(design: str, batch: list[Pair], answer: dict, needed: Seconds, when: dict) -> StepSample:
    """`answer` holds wall_s, cpu_s, loss, peak_rss_mib and sequence_lengths; `when` precision, mix and repetition."""
    own_tokens = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in batch)
    return StepSample(
        design=design,
        pairs=len(batch),
        useful_tokens=useful_tokens(batch),
        floor_wall_s=needed.wall,
        floor_cpu_s=needed.cpu,
        added_tokens=sum(answer["sequence_lengths"]) - own_tokens,
        **when,
        **answer,
    )


def measure_memory(plan: Plan, weights_of: Callable[[int], Path], results: Results) -> None:
    """Each design on each batch in a process of its own, in the first precision."""
    precision = plan.precisions[0]
    for shape, vocab, pairs in memory_batches(plan):
        rows, warm = to_json(pairs), to_json(exact_pairs(8, 4, 1, vocab))
        for design, accumulating in product(plan.designs, (False, True)):
            say(f"memory: {shape}, vocabulary {vocab}, {design}{', accumulating' if accumulating else ''}")
            with start_design(design, plan, weights_of(vocab), precision) as worker:
                answer = worker.ask("memory", pairs=rows, warm=warm, accumulating=accumulating)
                results.introduce(design, worker)
            results.memory.append(MemorySample(design, shape, precision, vocab, len(pairs), accumulating, **answer))


def start_design(design: str, plan: Plan, weights: Path, precision: str) -> Worker:
    arguments = ["--weights", str(weights), "--precision", precision, "--threads", str(plan.threads)]
    if design in PEER_WORKERS:
        return Worker(design, PEERS / "bin" / "python", PEER_WORKERS[design], arguments, plan.threads)
    own = ["--design", design, *arguments]
    return Worker(design, Path(sys.executable), "worker_preftune.py", own, plan.threads)


def start_floor(plan: Plan, precision: str) -> Worker:
    arguments = ["--serve", "--precision", precision, "--threads", str(plan.threads), *size_options(plan.size)]
    return Worker("floor", Path(sys.executable), "floor.py", arguments, plan.threads)


def missing_peer(script: str, designs: Iterable[str]) -> str | None:
    """None where the environment of the peers has what these designs need, else what to do about it."""
    for design in designs:
        package = PEER_PACKAGES.get(design)
        if package and not has_peer(package):
            return NO_PEER.format(script=script, design=design, package=package)
    return None


def has_peer(package: str) -> bool:
    """Whether the environment of the peers has a package."""
    return any(PEERS.glob(f"lib/python*/site-packages/{package.replace('-', '_')}"))


def make_weights(size: ModelSize, folder: Path) -> str:
    """Write the model in a process of its own, which keeps torch out of this one; gives its size in words."""
    command = [sys.executable, str(report.ROOT / "benchmarks" / "weights.py"), str(folder), *size_options(size)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def size_options(size: ModelSize) -> list[str]:
    return [text for name, value in asdict(size).items() for text in (f"--{name}", str(value))]


def run(plan: Plan) -> Results:
    """Everything the plan asks for. Weights are made once per vocabulary and removed at the end."""
    results = Results([], [], [], {}, {})
    with tempfile.TemporaryDirectory(prefix="step-bench-") as scratch:

        def weights_of(vocab: int) -> Path:
            folder = Path(scratch) / f"vocab-{vocab}"
            if not folder.exists():
                say(f"model with vocabulary {vocab}: {make_weights(replace(plan.size, vocab=vocab), folder)}")
            return folder

        if "speed" in plan.parts:
            for precision in plan.precisions:
                measure_speed(plan, weights_of(plan.size.vocab), precision, results)
        if "memory" in plan.parts:
            measure_memory(plan, weights_of, results)
    return results


def say(message: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {message}", file=sys.stderr, flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="pairs per optimizer step")
    parser.add_argument("--mixes", type=listed(*MIXES), default=tuple(MIXES))
    parser.add_argument("--precision", type=listed("bf16", "fp32"), default=("bf16", "fp32"))
    parser.add_argument(
        "--designs",
        type=listed(*DESIGNS, *ON_REQUEST),
        help=f"some of {', '.join((*DESIGNS, *ON_REQUEST))}; default: the first three; preftune,naive for --tiny",
    )
    parser.add_argument("--parts", type=listed("speed", "memory"), default=("speed", "memory"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--takes", type=int, default=1, help="times every batch is gone through; the quickest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on short pairs; writes only where --out says")
    parser.add_argument("--out", type=Path, help=f"folder for step.md and step.json (default {RESULTS.name}/)")
    return parser.parse_args(argv)


def listed(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """A comma-separated list of some of these."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(allowed)}")
        return names

    return parse


def build_plan(arguments: argparse.Namespace) -> Plan:
    tiny = arguments.tiny
    factor = TINY_FACTOR if tiny else 1
    return Plan(
        designs=arguments.designs or (("preftune", "naive") if tiny else DESIGNS),
        mixes={name: MIXES[name].shrunk(factor) for name in arguments.mixes},
        precisions=arguments.precision,
        parts=arguments.parts,
        pairs=arguments.pairs,
        repeats=arguments.repeats,
        takes=arguments.takes,
        threads=arguments.threads,
        size=ModelSize(hidden=64, layers=2, heads=4, mlp=128, vocab=512) if tiny else ModelSize(),
        large_vocabs=(1024, 2048) if tiny else (128_000, 256_000),
        exact_length=256 // factor,
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    plan = build_plan(arguments)
    missing = missing_peer("step.py", plan.designs)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    context = report.describe_run("step.py", argv)
    try:
        results = run(plan)
    except WorkerError as error:
        print(f"step.py: {error}", file=sys.stderr)
        return 1
    context["load_after"] = report.load_average()
    page = render(plan, results, context)
    print(page)
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out is not None:
        write(out, page, {**context, "plan": asdict(plan), **asdict(results)})
    return 0


def write(out: Path, page: str, record: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "step.md").write_text(page, encoding="utf-8")
    (out / "step.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {out / 'step.md'} and step.json")


if __name__ == "__main__":
    sys.exit(main())
