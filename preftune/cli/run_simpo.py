"""What `scripts/run_simpo.py` does: `preftune train`, with the SimPO repository's command line and its defaults."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.train import run

log = logging.getLogger(__name__)

_EPILOG = """examples:
  accelerate launch scripts/run_simpo.py training_configs/mistral-7b-base-simpo.yaml
  accelerate launch scripts/run_simpo.py my.yaml --learning_rate=5e-7 --beta 2.5 --dry-run

Overrides may be written --key=value, --key value or key=value. For the ids and rows of the repository add
tokenization=princeton mixer_order=head. A run whose output_dir holds a checkpoint goes on from it;
resume_from_checkpoint=false starts afresh.
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
    words = [*filled_in(path, words), *words]
    recipe = load_recipe(path, words)
    if recipe.training.get("resume_from_checkpoint") is None and _holds_checkpoint(recipe.output_dir):
        recipe = load_recipe(path, [*words, "resume_from_checkpoint=auto"])
    return run(recipe, dry_run=options.dry_run, as_json=options.json)


def _holds_checkpoint(folder: str) -> bool:
    """Whether an earlier run left a checkpoint; the SimPO repository goes on from the last one by itself."""
    from preftune.train.checkpoint import checkpoints

    found = checkpoints(Path(folder))
    if found:
        log.info(
            "%s holds %s: the run goes on from the last checkpoint, as in the SimPO repository. "
            "resume_from_checkpoint=false starts afresh.",
            folder, found[0].name,
        )  # fmt: skip
    return bool(found)


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
