"""What `scripts/run_simpo.py` does: `preftune train`, with the SimPO repository's command line and its defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.train import run

_EPILOG = """examples:
  accelerate launch scripts/run_simpo.py training_configs/mistral-7b-base-simpo.yaml
  accelerate launch scripts/run_simpo.py my.yaml --learning_rate=5e-7 --beta 2.5 --dry-run

Overrides may be written --key=value, --key value or key=value. For the ids and rows of the repository add
tokenization=princeton mixer_order=head.
"""


def main(arguments: Sequence[str]) -> int:
    """Train by a file of the SimPO repository; where it is silent, the repository's defaults are filled in and said.

    Raises:
        PreftuneError: the recipe, the data or the model is wrong.
    """
    parser = _parser()
    options, words = parser.parse_known_args(arguments)
    if not words:
        parser.error("a RECIPE.yaml is required, such as training_configs/mistral-7b-base-simpo.yaml")
    from preftune.recipe import load_recipe
    from preftune.recipe.simpo_repository import filled_in, to_overrides

    path = None
    if words and not words[0].startswith("-") and ("=" not in words[0] or Path(words[0]).exists()):
        path, words = Path(words[0]), words[1:]
    words = to_overrides(words)
    recipe = load_recipe(path, [*filled_in(path, words), *words])
    return run(recipe, dry_run=options.dry_run, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_simpo.py",
        usage="run_simpo.py RECIPE.yaml [--key=value ...] [--dry-run] [--json]",
        description="Train by a recipe of the SimPO repository, as published.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--json", action="store_true", help="print the summary (or the recipe) as JSON")
    return parser
