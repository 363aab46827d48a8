"""`preftune report RUN...`: runs and evaluations as one HTML page and a Markdown file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_EPILOG = """examples:
  preftune report runs/simpo
  preftune report runs/simpo runs/dpo --eval out/simpo out/dpo regress.json answers.jsonl --output report.html

--eval takes what `preftune eval ... --json` printed, the answers of `preftune eval regress`, and folders of
`preftune eval ... run`. The page needs nothing beside itself; report.md beside it has the same tables.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the report.

    Raises:
        PreftuneError: a folder or a file is wrong.
    """
    options = _parser().parse_args(arguments)
    from preftune.report.write import build_report, write_report

    report = build_report(options.runs, options.eval or (), title=options.title, prices=options.prices)
    for path in write_report(report, options.output):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune report",
        description="One self-contained HTML page of runs and evaluations: curves, answers, win rates, lengths, cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, to be compared")
    parser.add_argument("--eval", nargs="+", metavar="PATH", help="figures, answers and folders of preftune eval")
    parser.add_argument("--output", default="report.html", metavar="F.html", help="the page (report.html)")
    parser.add_argument("--title", metavar="TEXT", help="of the page (the names of the runs)")
    parser.add_argument(
        "--prices", nargs=2, type=float, metavar=("READ", "WRITTEN"), help="of a judge's million tokens, for the cost"
    )
    return parser
