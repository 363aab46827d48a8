"""`preftune schema`: the keys of a recipe as a JSON schema, for editors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

_EPILOG = """examples:
  preftune schema > recipe.schema.json

An editor with YAML support then completes and checks a recipe that begins with
  # yaml-language-server: $schema=recipe.schema.json
"""


def main(arguments: Sequence[str]) -> int:
    """Print the schema."""
    parser = argparse.ArgumentParser(
        prog="preftune schema",
        description="Print the JSON schema of recipes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(arguments)
    from preftune.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
    return 0
