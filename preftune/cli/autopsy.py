"""`preftune autopsy RUN`: what training says of its own data, and the data without the rows it lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from preftune.errors import RecipeError

_EPILOG = """examples:
  preftune autopsy runs/simpo
  preftune autopsy runs/simpo --drop never,contradict --output clean
  preftune train runs/simpo/recipe.yaml dataset=clean output_dir=runs/clean
  preftune autopsy runs/simpo --checkpoints
  preftune autopsy runs/simpo --data heldout.jsonl

Lists the pairs that never separate, flip, contradict their neighbours, or separate by length alone. RUN gets
autopsy.md, autopsy.json, and autopsy-pairs.jsonl with the margins of every pair. What is on a list is worth a look; it
is not therefore wrong.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page, print its figures, and with --drop write the set.

    Raises:
        PreftuneError: the run has no margins, its data has changed, or the output cannot be written.
    """
    options = _parser().parse_args(arguments)
    drop = [word for word in (options.drop or "").split(",") if word]
    if bool(drop) != bool(options.output):
        raise RecipeError("--drop and --output go together: what is left out, and where the rest is written.")
    from preftune.autopsy import examine
    from preftune.autopsy.clean import check_words, write_clean
    from preftune.autopsy.page import record, summary, write_autopsy

    check_words(drop)
    found = examine(options.run, checkpoints=options.checkpoints, data=options.data)
    page = write_autopsy(found, options.show)
    report = write_clean(found, drop, options.output) if drop else None
    if options.json:
        print(json.dumps(record(found) | ({} if report is None else {"clean": report}), ensure_ascii=False, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("pairs that", "number", "share", title=f"{options.run}: {len(found.pairs)} pairs")
    for what, count, share in summary(found):
        table.add_row(what, str(count), f"{share:.1%}")
    Console().print(table)
    print(f"The rows: {page}")
    if report is not None:
        print(f"{report['kept']} of {report['rows']} rows are left, in {options.output}. Train on them:")
        run = options.run.rstrip("/")
        print(f"preftune train {run}/recipe.yaml dataset={options.output} output_dir={run}-clean")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune autopsy",
        description="Which pairs of a run's data never separate, flip, contradict others, or separate by length alone.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the output_dir of preftune train")
    add("--checkpoints", action="store_true", help="margins under the start and each checkpoint, not those of training")
    add("--data", metavar="DATA", help="other rows, scored with the checkpoints")
    add("--drop", metavar="LIST,LIST", help="leave out: never, flip (right once, wrong at the end), contradict, length")
    add("--output", metavar="OUT", help="where the rest is written: a folder, FILE.jsonl or FILE.parquet")
    add("--show", type=int, default=20, metavar="N", help="rows of each list on the page (20)")
    add("--json", action="store_true", help="print JSON")
    return parser
