"""`preftune presets`: the published settings that `preftune train --preset NAME` runs."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.recipe.presets import Preset

_EPILOG = """examples:
  preftune presets
  preftune presets --json
  preftune train --preset llama3-instruct-v2 --model path/or/hub-name --data pairs.jsonl total_batch_size=128
"""


def main(arguments: Sequence[str]) -> int:
    """List the published settings."""
    options = _parser().parse_args(arguments)
    from preftune.recipe.presets import load_presets

    presets = load_presets()
    if options.json:
        logging.getLogger("preftune").setLevel(logging.WARNING)  # how each file is read was not asked for
        print(json.dumps([_facts(preset) for preset in presets], indent=2, ensure_ascii=False))
        return 0
    width = max((len(preset.name) for preset in presets), default=0)
    for preset in presets:
        print(f"{preset.name:<{width}}  {preset.about}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune presets",
        description="List the published settings by name, with what each reproduces.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON, with file, model, data and objective")
    return parser


def _facts(preset: Preset) -> dict[str, Any]:
    from preftune.recipe import describe_objective, load_recipe

    recipe = load_recipe(preset.file)
    return {
        "name": preset.name,
        "about": preset.about,
        "file": str(preset.file),
        "model_name_or_path": recipe.model_name_or_path,
        "dataset": recipe.dataset,
        "objective": describe_objective(recipe),
        "learning_rate": recipe.training["learning_rate"],
        "max_length": recipe.max_length,
    }
