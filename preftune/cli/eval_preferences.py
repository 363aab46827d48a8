"""`preftune eval preferences MODEL DATA`: reward accuracy on pairs, by length and by subset."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from preftune.cli.values import column

LINE = "reward accuracy on pairs: a reward model's, or the implicit reward of an objective"


def add_preferences(benchmarks: Any) -> None:
    """Add the parser to those of `preftune eval`."""
    parser = benchmarks.add_parser("preferences", help=LINE, description=LINE, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a reward model, or with --objective a language model")
    parser.add_argument("data", metavar="DATA", help="pairs, as train reads them")
    parser.add_argument("--objective", metavar="NAME", help="whose implicit reward is taken: simpo, dpo, orpo ...")
    parser.add_argument("--set", nargs="+", type=_setting, metavar="KEY=VALUE", help="of the objective: beta=2.0")
    parser.add_argument("--reference", metavar="MODEL", help="the reference model, where the objective has one")
    parser.add_argument("--split", default="train", help="of a folder: train, test ... (train)")
    parser.add_argument(
        "--columns", nargs="+", type=column, metavar="NAME=ROLE", help="what a column is; NAME= ignores it"
    )
    parser.add_argument("--subset", metavar="COLUMN", help="the column with the name of a row's subset")
    parser.add_argument("--max-length", type=int, metavar="N", help="cut prompt and response together to N tokens")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from preftune.evaluation.preferences import measure_preferences

    report = measure_preferences(
        options.model,
        options.data,
        objective=options.objective,
        settings=dict(options.set or ()),
        reference=options.reference,
        split=options.split,
        columns=dict(options.columns or ()),
        subset=options.subset,
        max_length=options.max_length,
    )
    if options.json:
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("pairs of", "number", "accuracy %", "± s.e.", "margin", title=f"{options.model}: {report.reward}")
    for name, one in {"all": report.overall, **report.by_length, **report.subsets}.items():
        table.add_row(name, str(one.pairs), f"{one.accuracy:.2f}", f"{one.standard_error:.2f}", f"{one.margin:.4g}")
    if report.subset_mean is not None:
        table.add_row("mean of subsets", "", f"{report.subset_mean:.2f}", "", "")
    Console().print(table)
    if report.cut:
        print(f"{report.cut} rows were cut to the length that is read")
    return 0


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE such as beta=2.0, found {text!r}")
    return name, yaml.safe_load(value)
