"""`preftune eval regress BEFORE AFTER DATA`: what an alignment cost, without a judge."""

from __future__ import annotations

import argparse
import json
from typing import Any

from preftune.cli.values import at_least

LINE = "two models on the same prompts: perplexity, KL, length, repetition, refusals, language, JSON"


def add_regress(benchmarks: Any) -> None:
    """Add the parser to those of `preftune eval`."""
    parser = benchmarks.add_parser("regress", help=LINE, description=LINE, allow_abbrev=False)
    parser.add_argument("before", metavar="BEFORE", help="the model before training: a folder, a run, or a hub name")
    parser.add_argument("after", metavar="AFTER", help="the model after it")
    parser.add_argument("data", nargs="+", metavar="DATA", help="rows with prompts and answers, as train reads them")
    parser.add_argument("--split", default="test", help="of the data (test)")
    parser.add_argument("--limit", type=at_least(1), default=200, metavar="N", help="prompts, drawn by the seed (200)")
    parser.add_argument("--max-tokens", type=at_least(1), default=256, metavar="N", help="of an answer (256)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument("--slots", type=at_least(1), default=32, metavar="N", help="answers written at once (32)")
    parser.add_argument("--answers", metavar="F.jsonl", help="write prompt, answer before and answer after of each row")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from preftune.evaluation.files import write_text
    from preftune.evaluation.regress import regress, table

    report = regress(
        options.before,
        options.after,
        options.data,
        split=options.split,
        limit=options.limit,
        max_tokens=options.max_tokens,
        seed=options.seed,
        slots=options.slots,
    )
    if options.answers:
        rows = [{"prompt": prompt, "before": old, "after": new} for prompt, old, new in report.answers]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(options.answers, lines)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if options.json else table(report), end="")
    return 0
