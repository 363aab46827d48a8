"""How time and memory of a step grow: in prompt tokens, response tokens, vocabulary, pairs and ranks.

    benchmarks/install_peers.sh                       once: TRL and Liger in an environment of their own
    python benchmarks/growth.py                       tables and plots, into benchmarks/results/growth.*
    python benchmarks/growth.py --axes prompt --designs preftune,padded
    python benchmarks/growth.py --tiny                a self test of seconds, writes nothing

Along each axis all lengths but one stand still, and all responses are equally long, so that no design pays for padding:
what is left is what a further token costs. The designs (step.py) take turns, but for large vocabularies, where one runs
after the other; the best of the repetitions counts. The memory is one more step's peak above weights, gradients and
moments, in the same process. Ranks are processes of one thread each under DistributedDataParallel, with the same pairs
for each (worker_ranks.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import report
from growth_page import plot, render
from pool import WorkerError
from step import DESIGNS, ON_REQUEST, RESULTS, listed, make_weights, missing_peer, say, size_options, start_design
from workload import ModelSize, Pair, exact_pairs, to_json

SIDE_BY_SIDE = 32_000  # above this vocabulary the designs' weights and moments do not fit beside each other


@dataclass(frozen=True)
class Point:
    """One place on one axis; `ranks` processes with `pairs` each."""

    axis: str
    prompt: int = 128
    response: int = 128
    vocab: int = 32_000
    pairs: int = 2
    ranks: int = 1

    @property
    def at(self) -> int:
        """Where on its axis it is."""
        return getattr(self, self.axis)

    def batch(self) -> list[Pair]:
        return exact_pairs(self.prompt, self.response, self.pairs, self.vocab)

    def shrunk(self, factor: int) -> Point:
        lengths = {"prompt": self.prompt // factor, "response": self.response // factor}
        return replace(self, vocab=self.vocab // 64, **lengths)


AXES = {
    "prompt": [Point("prompt", prompt=prompt) for prompt in (64, 256, 512, 768)],
    "response": [Point("response", response=response) for response in (64, 256, 512, 768)],
    "vocab": [Point("vocab", vocab=vocab) for vocab in (32_000, 128_000, 256_000)],
    "pairs": [Point("pairs", pairs=pairs) for pairs in (1, 2, 4, 8)],
    "ranks": [Point("ranks", pairs=4, ranks=ranks) for ranks in (1, 2)],
}


@dataclass(frozen=True)
class GrowthPlan:
    """What is measured."""

    designs: tuple[str, ...]
    points: tuple[Point, ...]
    precision: str
    repeats: int
    threads: int
    size: ModelSize


@dataclass(frozen=True)
class GrowthSample:
    """One design at one point: seconds of each repetition, and MiB above the training state (None over ranks)."""

    design: str
    point: Point
    seconds: list[float]
    above_state_mib: float | None

    @property
    def best(self) -> float:
        return min(self.seconds)


def run(plan: GrowthPlan) -> list[GrowthSample]:
    """Everything the plan asks for, one vocabulary after the other; weights are removed at the end."""
    samples: list[GrowthSample] = []
    with tempfile.TemporaryDirectory(prefix="growth-bench-") as scratch:
        for vocab in dict.fromkeys(point.vocab for point in plan.points):
            folder = Path(scratch) / f"vocab-{vocab}"
            say(f"model with vocabulary {vocab}: {make_weights(replace(plan.size, vocab=vocab), folder)}")
            points = [point for point in plan.points if point.vocab == vocab]
            alone = [(design,) for design in plan.designs]
            for designs in alone if vocab > SIDE_BY_SIDE else [plan.designs]:
                together = replace(plan, designs=designs)
                samples += measure(together, [point for point in points if point.axis != "ranks"], folder)
            samples += [measure_ranks(plan, point) for point in points if point.axis == "ranks"]
    return samples


def measure(plan: GrowthPlan, points: Iterable[Point], weights: Path) -> Iterator[GrowthSample]:
    """All designs at all points of one vocabulary, in one process a design."""
    with contextlib.ExitStack() as stack:
        workers = {
            design: stack.enter_context(start_design(design, plan, weights, plan.precision)) for design in plan.designs
        }
        for point in points:
            say(f"{point.axis} {point.at}")
            rows, warm = to_json(point.batch()), to_json(exact_pairs(8, 4, 1, point.vocab))
            seconds: dict[str, list[float]] = {design: [] for design in plan.designs}
            for _ in range(plan.repeats):
                for design, worker in workers.items():
                    seconds[design].append(worker.ask("step", pairs=rows)["wall_s"])
            for design, worker in workers.items():
                memory = worker.ask("memory", pairs=rows, warm=warm, accumulating=False)
                yield GrowthSample(design, point, seconds[design], memory["above_state_mib"])


def measure_ranks(plan: GrowthPlan, point: Point) -> GrowthSample:
    """Our own step over several processes of one thread each."""
    say(f"{point.axis} {point.at}")
    here = report.ROOT / "benchmarks" / "worker_ranks.py"
    options = ["--precision", plan.precision, "--repeats", str(plan.repeats), *size_options(plan.size)]
    options += [f"--{name}={getattr(point, name)}" for name in ("ranks", "pairs", "prompt", "response", "vocab")]
    done = subprocess.run([sys.executable, str(here), *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"{point.ranks} ranks ended with status {done.returncode}\n{done.stderr[-2000:]}")
    return GrowthSample("preftune", point, json.loads(done.stdout.splitlines()[-1])["seconds"], None)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=listed(*AXES), default=tuple(AXES))
    parser.add_argument("--designs", type=listed(*DESIGNS, *ON_REQUEST), help="default: preftune,padded,trl,liger")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on short pairs; writes only where --out says")
    parser.add_argument("--out", type=Path, help=f"folder for growth.md, .json and .png (default {RESULTS.name}/)")
    return parser.parse_args(argv)


def build_plan(arguments: argparse.Namespace) -> GrowthPlan:
    points = [point for axis in arguments.axes for point in AXES[axis]]
    usual = ("preftune", "padded") if arguments.tiny else ("preftune", "padded", "trl", "liger")
    return GrowthPlan(
        designs=arguments.designs or usual,
        points=tuple(point.shrunk(16) if arguments.tiny else point for point in points),
        precision=arguments.precision,
        repeats=arguments.repeats,
        threads=arguments.threads,
        size=ModelSize(hidden=64, layers=2, heads=4, mlp=128, vocab=500) if arguments.tiny else ModelSize(),
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    plan = build_plan(arguments)
    missing = missing_peer("growth.py", plan.designs)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    context = report.describe_run("growth.py", argv)
    try:
        samples = run(plan)
    except WorkerError as error:
        print(f"growth.py: {error}", file=sys.stderr)
        return 1
    context["load_after"] = report.load_average()
    page = render(plan, samples, context)
    print(page)
    out = arguments.out or (None if arguments.tiny else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        record = {**context, "plan": asdict(plan), "samples": [asdict(sample) for sample in samples]}
        (out / "growth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "growth.md").write_text(page, encoding="utf-8")
        plot(samples, out / "growth.png")
        say(f"wrote {out / 'growth.md'}, growth.json and growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
