"""How memory grows with the length of a row: one pair of 2k to 32k tokens, layers checkpointed.

    python benchmarks/long_rows.py                  table and plot, into benchmarks/results/long-rows.*
    python benchmarks/long_rows.py --lengths 2048,4096 --out FOLDER

Each row is a dialogue of that many tokens whose last 512 are the chosen response, beside a rejected one of 512. Each
cell is a fresh process as in plan_memory.py (two steps, resident memory over what was there before the model), and the
plan is what `preftune plan` counts for it. Attention is quadratic in time, so the longest takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import report
from plan_memory import llama, measure, plan, write
from step import RESULTS, say

LENGTHS = (2048, 4096, 8192, 16384, 32768)
RESPONSE = 512
SIZE = (256, 2, 32_000)  # hidden, layers, vocabulary


def cell(length: int, size: tuple[int, int, int] = SIZE) -> dict[str, Any]:
    """What worker_plan_memory.py takes."""
    return {
        "config": {**llama(*size), "max_position_embeddings": length},
        "keys": {"objective": "simpo", "gradient_checkpointing": True},
        "prompt": length - RESPONSE,
        "response": RESPONSE,
        "groups": 1,
        "tokens": 8192,
    }


def slope(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Least squares: GiB at length 0, MiB a token, and the largest deviation from the line as a share."""
    lengths, held = [row["length"] for row in rows], [row["measured_gib"] for row in rows]
    mean_l, mean_h = sum(lengths) / len(rows), sum(held) / len(rows)
    spread = sum((length - mean_l) ** 2 for length in lengths)
    grow = sum((length - mean_l) * (gib - mean_h) for length, gib in zip(lengths, held, strict=True)) / spread
    start = mean_h - grow * mean_l
    off = max(abs(start + grow * length - gib) / gib for length, gib in zip(lengths, held, strict=True))
    return start, grow * 1024, off


def render(rows: list[dict[str, Any]], context: dict[str, Any]) -> str:
    machine, (hidden, layers, vocabulary) = context["machine"], SIZE
    lines = [
        "# Memory over the length of a row",
        "",
        f"`{context['command']}`, {context['date']}, commit {context['commit']}; {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; Llama of hidden size {hidden}, {layers} layers, {vocabulary} tokens of "
        "vocabulary; SimPO, float32, gradient_checkpointing, one pair a step (benchmarks/long_rows.py says what is "
        "measured).",
        "",
        "| tokens of a row | held, GiB | planned, GiB | planned / held | times the row before |",
        "|---|---|---|---|---|",
    ]
    before = None
    for row in rows:
        held, planned = row["measured_gib"], row["planned"]["total"]
        times = f"{held / before:.2f}" if before else ""
        before = held
        lines.append(f"| {row['length']:,} | {held:.3f} | {planned:.3f} | {planned / held:.3f} | {times} |")
    if len(rows) > 2:
        start, grow, off = slope(rows)
        lines += [
            "",
            f"A straight line: {start:.3f} GiB + {grow * 1024:.1f} KiB a token; no row is further from it than "
            f"{off:.1%}.",
        ]
    return "\n".join([*lines, "", "![memory over length](long-rows.png)", ""])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    lengths = [row["length"] / 1024 for row in rows]
    axes.plot(lengths, [row["measured_gib"] for row in rows], "o-", label="held")
    axes.plot(lengths, [row["planned"]["total"] for row in rows], "--", label="planned")
    axes.set(xlabel="tokens of a row, thousands", ylabel="memory, GiB", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens of a row, with commas between")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the page (default {RESULTS.name}/)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    context, rows = report.describe_run("long_rows.py", argv), []
    for length in map(int, options.lengths.split(",")):
        described = cell(length)
        held, planned = measure(described, options.threads, "gives-back"), plan(described)
        rows.append({"length": length, "measured_gib": held, "planned": planned})
        say(f"{length}: planned {planned['total']:.3f}, held {held:.3f} GiB")
        write(options.out / "long-rows", render(rows, context), {**context, "rows": rows})
    plot(rows, options.out / "long-rows.png")
    print(render(rows, context))
    return 0


if __name__ == "__main__":
    sys.exit(main())
