"""What was measured, as rows of a table, and where: markdown for people, JSON for scripts."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plan import MemorySample, StepSample

ROOT = Path(__file__).resolve().parent.parent


def speed_table(samples: list[StepSample], baseline: str) -> str:
    """One row per precision, mix and design."""
    header = [
        "precision", "mix", "design", "pairs/s", "tokens/s", "wall s", "CPU s", "loss",
        f"speed-up over {baseline}, wall", "same, CPU", "floor / wall", "floor / CPU",
    ]  # fmt: skip
    groups: dict[tuple[str, str, str], list[StepSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.precision, sample.mix, sample.design].append(sample)
    rows = []
    for (precision, mix, design), own in groups.items():
        reference = groups.get((precision, mix, baseline), [])
        rows.append([precision, mix, design, *_speed_cells(own, reference)])
    return markdown_table(header, rows)


def loss_spread(samples: list[StepSample]) -> dict[str, float]:
    """Largest difference between the losses of two designs on one batch, by precision; they are to be the same."""
    losses: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for sample in samples:
        losses[sample.precision, sample.mix, sample.repetition].append(sample.loss)
    spread: dict[str, float] = defaultdict(float)
    for (precision, _, _), values in losses.items():
        spread[precision] = max(spread[precision], max(values) - min(values))
    return dict(spread)


def memory_table(samples: list[MemorySample], baseline: str) -> str:
    """One row per batch, one column per design."""
    designs = list(dict.fromkeys(sample.design for sample in samples))
    by_batch: dict[tuple[str, ...], dict[str, MemorySample]] = defaultdict(dict)
    for sample in samples:
        gradients = "from before" if sample.accumulating else "new"
        key = (sample.shape, str(sample.pairs), str(sample.vocab), sample.precision, gradients)
        by_batch[key][sample.design] = sample
    others = [design for design in designs if design != baseline and baseline in designs]
    header = ["batch", "pairs", "vocabulary", "precision", "gradients", *(f"{design} MiB" for design in designs)]
    header += [f"{baseline} / {design}" for design in others]
    rows = []
    for batch, cells in by_batch.items():
        row: list[str] = [*batch, *(f"{cells[design].above_state_mib:.0f}" for design in designs)]
        row += [_ratio(cells[baseline].above_state_mib, cells[design].above_state_mib) for design in others]
        rows.append(row)
    return markdown_table(header, rows)


def rates_table(floors: list[dict]) -> str:
    """Best product rates of all repetitions, by precision and matrix."""
    best: dict[tuple[str, str, str], float] = defaultdict(float)
    for entry in floors:
        for name, forms in entry["rates"].items():
            for form, rate in forms.items():
                key = entry["precision"], name, form
                best[key] = max(best[key], rate["flops_per_wall_s"] / 1e9)
    forms = list(dict.fromkeys(form for _, _, form in best))
    rows = []
    for precision, name in dict.fromkeys((precision, name) for precision, name, _ in best):
        rows.append([precision, name, *(f"{best[precision, name, form]:.0f}" for form in forms)])
    return markdown_table(["precision", "matrix", *(f"{form.replace('_', ' ')} GFLOP/s" for form in forms)], rows)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Padded, so that it reads as well in a terminal as on a page."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def describe_run(script: str, argv: list[str] | None) -> dict[str, Any]:
    """When, where, of what and how: what every file of results starts with."""
    words = ["python", f"benchmarks/{script}", *(sys.argv[1:] if argv is None else argv)]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": describe_machine(),
        "commit": describe_commit(),
        "command": shlex.join(words).replace(os.environ.get("PREFTUNE_TEST_DATA") or "\0", "$PREFTUNE_TEST_DATA"),
        "load_before": load_average(),
    }


def heading(context: dict[str, Any], threads: int) -> list[str]:
    """The first lines of a page, from `describe_run` and a `load_after`."""
    machine = context["machine"]
    return [
        f"`{context['command']}`",
        "",
        f"{context['date']}, commit {context['commit']}. {machine['cpu']} ({', '.join(machine['matrix_flags'])}), "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB; {threads} threads; load average "
        f"{context['load_before']} before, {context['load_after']} after.",
    ]


def load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def describe_machine() -> dict[str, object]:
    """Processor, cores and memory; nothing that names the machine."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in info.splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "matrix_flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_commit() -> str:
    """Short commit of the tree, with "+ changes" when it is not what was committed."""
    commit = _git("rev-parse", "--short", "HEAD")
    if not commit:
        return "none (not committed)"
    return commit + (" + changes" if _git("status", "--porcelain", "--", "preftune", "benchmarks/*.py") else "")


def _speed_cells(own: list[StepSample], reference: list[StepSample]) -> list[str]:
    wall, cpu = sum(sample.wall_s for sample in own), sum(sample.cpu_s for sample in own)
    walls = _speedup_cell([sample.wall_s for sample in own], [sample.wall_s for sample in reference])
    cpus = _speedup_cell([sample.cpu_s for sample in own], [sample.cpu_s for sample in reference])
    return [
        f"{sum(sample.pairs for sample in own) / wall:.3g}",
        f"{sum(sample.useful_tokens for sample in own) / wall:.0f}",
        f"{wall / len(own):.3g}",
        f"{cpu / len(own):.3g}",
        f"{statistics.fmean(sample.loss for sample in own):.4f}",
        walls,
        cpus,
        _ratio(sum(sample.floor_wall_s for sample in own), wall),
        _ratio(sum(sample.floor_cpu_s for sample in own), cpu),
    ]


def speedups(own: list[float], reference: list[float]) -> list[float]:
    """How many times as fast, repetition by repetition."""
    return [theirs / ours for ours, theirs in zip(own, reference, strict=True)]


def _speedup_cell(own: list[float], reference: list[float]) -> str:
    """Of all repetitions together, and in brackets the median and each."""
    if len(own) != len(reference):
        return "-"
    ratios = speedups(own, reference)
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{sum(reference) / sum(own):.2f} (median {statistics.median(ratios):.2f}; {each})"


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}" if denominator > 0 else "-"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
