"""`preftune objectives`: the objectives, with formula, defaults, source and cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

_EPILOG = """examples:
  preftune objectives
  preftune objectives simpo
  preftune objectives --json
"""


def main(arguments: Sequence[str]) -> int:
    """List all objectives, or describe one.

    Raises:
        RecipeError: there is no such objective.
    """
    options = _parser().parse_args(arguments)
    from preftune.recipe.catalogue import all_facts, objective_facts

    facts = [objective_facts(options.objective)] if options.objective else all_facts()
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif options.objective:
        _describe(facts[0])
    else:
        _list(facts)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune objectives",
        description="List the objectives, or describe one: its formula, keys with defaults, source and cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("objective", nargs="?", metavar="OBJECTIVE", help="the name of one")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    return parser


def _list(facts: list[dict]) -> None:
    for one in facts:
        reference = "reference" if one["needs_reference"] else "no reference"
        print(f"{one['name']}  ({one['layout']}, {reference}; {one['source']})")
        print(f"    {one['formula']}")
        print(f"    defaults: {_keys(one['defaults'])}; needs: {one['cost']}")


def _describe(one: dict) -> None:
    print(f"{one['name']}: {one['formula']}\n\n{one['doc']}\n")
    print(f"source     {one['source']}")
    print(f"data       {one['layout']}")
    print(f"defaults   {_keys(one['defaults'])}; learning_rate {one['learning_rate']:g}")
    print(f"reference  {'needed' if one['needs_reference'] else 'not needed'}")
    print(f"needs      {one['cost']}")


def _keys(defaults: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in defaults.items()) or "no keys"
