"""`preftune eval harness MODEL --tasks ...`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LINE = "tasks of lm-evaluation-harness: GSM8K, MMLU, or your own"


def add_harness(benchmarks: Any) -> None:
    """Add the parser to those of `preftune eval`."""
    parser = benchmarks.add_parser("harness", help=LINE, description=LINE, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a folder, a run, or a hub name")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names, groups, or YAML files")
    parser.add_argument("--include", nargs="+", default=(), metavar="DIR", help="folders with tasks of your own")
    parser.add_argument("--few-shot", type=int, metavar="N", help="examples in front (as the task says)")
    parser.add_argument("--limit", type=int, metavar="N", help="samples of each task at most")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="(8)")
    parser.add_argument("--plain", action="store_true", help="without the chat template, as base models are asked")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument(
        "--samples", metavar="F.jsonl", help="write prompt, target, answer and its tokens of each sample"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from preftune.evaluation.files import write_rows
    from preftune.evaluation.harness import run_harness

    report = run_harness(
        options.model,
        [name for name in options.tasks.split(",") if name],
        include=[Path(folder) for folder in options.include],
        fewshot=options.few_shot,
        limit=options.limit,
        batch_size=options.batch_size,
        plain=options.plain,
        seed=options.seed,
    )
    if options.samples:
        write_rows(options.samples, report.rows)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "task", "metric", "value", "± s.e.", "samples", "tokens", title=f"{report.model}: {report.prompt_form}"
    )
    for one in report.tasks:
        numbers = [(one.value, ".4f"), (one.standard_error, ".4f"), (one.samples, "d"), (one.mean_tokens, ".1f")]
        table.add_row(one.task, one.metric, *("" if n is None else format(n, form) for n, form in numbers))
    Console().print(table)
    return 0
