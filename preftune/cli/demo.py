"""`preftune demo`: the whole road on a small model, from a tokenizer to answers before and after SimPO."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """examples:
  preftune demo
  preftune demo --seeds 0,1,2 --output runs/demo-seeds
  preftune demo --swap --output runs/demo-swap
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo once, or once for each of `--seeds`.

    Raises:
        PreftuneError: the output folder cannot be used.
    """
    options = _parser().parse_args(arguments)
    from preftune.demo.run import run_demo

    if options.seeds is None:
        run_demo(output=options.output, seed=options.seed, swap=options.swap)
        return 0
    for seed in options.seeds:
        run_demo(output=options.output / f"seed-{seed}", seed=seed, swap=options.swap)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune demo",
        description="Build a small bilingual model, teach it facts (SFT), then to prefer Chinese answers (SimPO), "
        "and show both side by side.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder of the run (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (0)")
    parser.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="several runs, in OUTPUT/seed-N")
    parser.add_argument("--swap", action="store_true", help="control run: the Chinese answer is the rejected one")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, found {text!r}") from None
