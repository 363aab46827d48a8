"""`preftune score`: the scores that a reward model gives to the responses in a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from preftune.cli.values import at_least, column, plain_file

_EPILOG = """examples:
  preftune score runs/reward pairs.jsonl
  preftune score runs/reward samples.jsonl --output scored.jsonl
  preftune score my-reward-model answers.csv --columns question=prompt text=response notes= --json

MODEL is a reward model (sequence classification with one label), or a language model or an adapter with
value_head.safetensors in its folder. FILE holds rows with a response, with chosen and rejected, or with a list of
responses; --output gets the same rows with 'scores', in the order of the responses.
"""


def main(arguments: Sequence[str]) -> int:
    """Score, and print a summary.

    Raises:
        PreftuneError: the file or the model is wrong.
    """
    options = _parser().parse_args(arguments)
    from preftune.serve.score import score_file

    summary = score_file(
        options.model,
        options.file,
        output=options.output,
        columns=dict(options.columns or ()),
        split=options.split,
        batch_tokens=options.batch_tokens,
        max_length=options.max_length,
    )
    _print_summary(summary, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune score",
        description="Score every response of every row with a reward model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder with a reward model, or a hub name")
    parser.add_argument("file", metavar="FILE", help="jsonl, json, csv or parquet, or a folder of them")
    parser.add_argument("--output", type=plain_file, metavar="F.jsonl", help="write the rows with their scores there")
    parser.add_argument(
        "--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it"
    )
    parser.add_argument("--split", default="train", help="of a folder: train, test, validation ... (train)")
    parser.add_argument(
        "--batch-tokens", type=at_least(1), default=16384, metavar="N", help="tokens of a forward pass (16384)"
    )
    parser.add_argument(
        "--max-length", type=at_least(2), metavar="N", help="cut longer texts to N tokens (what the model reads)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _print_summary(summary: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    print(f"{options.file} scored by {options.model}")
    table = Table(show_header=False)
    for name, value in summary.items():
        if value is not None:
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
