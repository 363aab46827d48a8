"""`preftune replay`: the rows of a step that stopped a run, and where their numbers stop being numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

_EPILOG = """examples:
  preftune replay runs/simpo/nonfinite/step-120
  preftune replay runs/simpo/nonfinite/step-120 --model runs/simpo/checkpoint-100 --json

A run that meets log-probs or a gradient that are no numbers writes that folder and names it. Exit code 1: it happens
again here; 0: every row is finite, so look at the precision and the attention of the run (torch_dtype, bf16, fp16).
"""


def main(arguments: Sequence[str]) -> int:
    """Replay the rows one by one, and print what each gives.

    Raises:
        PreftuneError: the folder is not of a step, or has no weights.
    """
    options = _parser().parse_args(arguments)
    from preftune.train.replay import replay

    step, rows, weights = replay(Path(options.folder), options.model)
    if options.json:
        print(json.dumps({"step": step, "rows": [asdict(row) for row in rows], "weights": weights}, indent=2))
    else:
        print(f"step {step}: {len(rows)} rows, {sum(not row.finite for row in rows)} of them not finite")
        for row in rows:
            logps = " ".join(f"{value:.4g}" for value in row.logps)
            loss = "" if row.loss is None else f" · loss {row.loss:.4g}"
            where = f" · first in {row.first}" if row.first else ""
            print(f"{row.row}: log-probs {logps}{loss} · gradient {row.grad_norm:.4g}{where}")
        if weights:
            print(f"weights that are not finite: {', '.join(weights)}")
    return int(bool(weights) or not all(row.finite for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune replay",
        description="Run the rows of a step that was not taken once more, one sequence at a time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="RUN/nonfinite/step-N", help="what the run has named")
    parser.add_argument("--model", metavar="M", help="other weights than those in the folder, such as a checkpoint")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    return parser
