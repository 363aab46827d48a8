"""What `preftune plan` says of memory, against what a process holds: three sizes, two vocabularies, full, LoRA, DPO.

    python benchmarks/plan_memory.py                     the table, into benchmarks/results/plan-memory.*
    python benchmarks/plan_memory.py --cells small       those whose name begins so, printed only (kept: --out FOLDER)
    python benchmarks/plan_memory.py --measured FILE     plan anew, and measure what an earlier file does not have

Each cell is a fresh process: two steps of PreferenceTrainer in float32 over exact lengths, and the peak of resident
memory in the loop over what was resident before the model. So that it is what the process holds, and not what its
allocator keeps of what was freed, glibc is told to give large blocks back at once (MALLOC_MMAP_THRESHOLD_);
`--allocator default` leaves it as users have it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import report
from step import RESULTS, say

SIZES = {"small": (512, 6), "medium": (640, 8), "large": (768, 8)}  # hidden, layers
VOCABULARIES = (32_000, 128_000)
METHODS: dict[str, dict[str, Any]] = {
    "full": {"keys": {"objective": "simpo"}},
    "lora": {"keys": {"objective": "dpo", "use_peft": True}, "groups": 8, "tokens": 7200},
    "dpo": {"keys": {"objective": "dpo"}},
}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def cells() -> dict[str, dict[str, Any]]:
    """What worker_plan_memory.py takes, by name."""
    lengths = {"prompt": 512, "response": 192, "groups": 4, "tokens": 2048}
    return {
        f"{size} {vocabulary // 1000}k {method}": {"config": llama(*SIZES[size], vocabulary), **lengths, **more}
        for size in SIZES
        for vocabulary in VOCABULARIES
        for method, more in METHODS.items()
    }


def llama(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """A Llama with an untied head and heads of 64."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def measure(cell: dict[str, Any], threads: int, allocator: str) -> float:
    """GiB that the cell's process holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(GIVES_BACK if allocator == "gives-back" else {})}
    worker = report.ROOT / "benchmarks" / "worker_plan_memory.py"
    command = [sys.executable, str(worker), json.dumps(cell), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"plan_memory.py: the worker failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["measured_gib"]


def plan(cell: dict[str, Any]) -> dict[str, Any]:
    """The estimate for a cell, in GiB by part."""
    from transformers import LlamaConfig
    from worker_plan_memory import recipe_of

    from preftune.train.memory import RunMemory

    # packed: the prompt once, and of each response what is fed
    whole = cell["groups"] * (cell["prompt"] + 2 * (cell["response"] - 1))
    memory = RunMemory(recipe_of(cell), LlamaConfig(**cell["config"]))
    several = whole > cell["tokens"] and cell["groups"] > 1  # a row that is longer than the budget stands alone
    return memory.estimate(min(cell["tokens"], whole) if several else whole, several=several).to_dict()


def render(rows: list[dict[str, Any]], context: dict[str, Any]) -> str:
    machine = context["machine"]
    lines = [
        "# What a plan says of memory, and what a process holds",
        "",
        f"`{context['command']}`, {context['date']}, commit {context['commit']}; {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; float32, fresh processes (benchmarks/plan_memory.py says what is measured).",
        "",
        "| model | vocabulary | run | parameters | planned, GiB | held, GiB | planned / held | fullest in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size, vocabulary, method = row["cell"].split()
        planned, held = row["planned"], row["measured_gib"]
        lines.append(
            f"| {size} | {vocabulary} | {method} | {planned['parameters'] / 1e6:.0f} M | {planned['total']:.2f} | "
            f"{held:.2f} | {planned['total'] / held:.3f} | {planned['moment']} |"
        )
    ratios = [row["planned"]["total"] / row["measured_gib"] for row in rows]
    lines += ["", f"planned / held: {min(ratios):.3f} to {max(ratios):.3f}", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="", help="only those whose name begins so; prints, and writes nothing")
    parser.add_argument("--measured", type=Path, help="a plan-memory.json of which the measured figures are taken")
    parser.add_argument("--out", type=Path, help=f"folder for plan-memory.md and .json (default {RESULTS.name}/)")
    parser.add_argument("--allocator", choices=("gives-back", "default"), default="gives-back")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    context = report.describe_run("plan_memory.py", argv)
    known: dict[str, float] = {}
    if options.measured:
        earlier = json.loads(options.measured.read_text(encoding="utf-8"))
        context = {key: earlier[key] for key in context}
        known = {row["cell"]: row["measured_gib"] for row in earlier["rows"]}
    whole = not options.cells and options.allocator == "gives-back"
    out, rows = options.out or (RESULTS if whole else None), []
    for name, cell in cells().items():
        if not name.startswith(options.cells):
            continue
        held = known.get(name) or measure(cell, options.threads, options.allocator)
        rows.append({"cell": name, "measured_gib": held, "planned": plan(cell)})
        say(f"{name}: planned {rows[-1]['planned']['total']:.3f}, held {held:.3f} GiB")
        if out is not None:
            write(out / "plan-memory", render(rows, context), {**context, "rows": rows})
    print(render(rows, context))
    return 0


def write(out: Path, page: str, record: dict[str, Any]) -> None:
    """After every cell, so that a run that is stopped can be gone on with (`--measured`)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
