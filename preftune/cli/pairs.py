"""`preftune pairs`: from scored answers to pairs that can be trained on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from preftune.cli.values import column

_EPILOG = """examples:
  preftune pairs scored.jsonl --output pairs
  preftune pairs scored.jsonl --output pairs --choose length-controlled --band 0.3 --min-margin 0.5
  preftune pairs scored.jsonl --output pairs.parquet --test-share 0

FILE holds rows with a prompt, 'responses' and 'scores', as annotate writes them. OUTPUT gets train.jsonl, test.jsonl
and pairs-report.json; `preftune train` reads the folder. The same file gives the same pairs.
"""


def main(arguments: Sequence[str]) -> int:
    """Make pairs, and print the report.

    Raises:
        PreftuneError: the file or a setting is wrong, or no pair is left.
    """
    options = _parser().parse_args(arguments)
    from preftune.onpolicy.choose import Rule
    from preftune.onpolicy.pairs import make_pairs

    report = make_pairs(
        options.file,
        options.output,
        rule=Rule(options.choose, options.min_margin, options.band, options.seed),
        test_share=options.test_share,
        seed=options.seed,
        format=options.format,
        columns=dict(options.columns or ()),
        split=options.split,
    )
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_report(report, options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune pairs",
        description="Make pairs of chosen and rejected answers from scored ones.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="jsonl, json or parquet, or a folder of them")
    add("--output", required=True, metavar="FOLDER", help="a folder, or F.jsonl or F.parquet for a single file")
    add(
        "--choose",
        choices=("best-worst", "length-controlled", "best-random"),
        default="best-worst",
        help="by score, or the closest lengths near both ends, or the best against any lower one (best-worst)",
    )
    add("--min-margin", type=float, default=0.0, metavar="X", help="leave out pairs with less between the scores (0)")
    add(
        "--band",
        type=float,
        default=0.25,
        metavar="X",
        help="of length-controlled: how near is near, as a share of best minus worst of the prompt (0.25)",
    )
    add("--test-share", type=float, default=0.05, metavar="X", help="of the prompts, kept for testing (0.05)")
    add("--seed", type=int, default=42, metavar="N", help="of the split and of best-random (42)")
    add("--format", choices=("jsonl", "parquet", "save_to_disk"), default="jsonl", help="of a folder (jsonl)")
    add("--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it")
    add("--split", default="train", help="of a folder: train, test, validation ... (train)")
    add("--json", action="store_true", help="print the report as JSON")
    return parser  # fmt: skip


def _print_report(report: dict[str, Any], output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{report['kept']} pairs of {report['rows']} rows: {output}")
    table = Table(show_header=False)
    for name, value in report.items():
        if name == "dropped":
            for reason, count in value.items():
                table.add_row(f"left out: {reason}", str(count))
        else:
            table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
