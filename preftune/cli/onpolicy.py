"""`preftune onpolicy`: rounds of sampling, scoring, pairing and training, each step resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_EPILOG = """examples:
  preftune onpolicy onpolicy.yaml
  preftune onpolicy onpolicy.yaml rounds=2 train.learning_rate=3e-7

The recipe:
  model_name_or_path: my-sft
  prompts: prompts.jsonl
  eval_prompts: heldout.jsonl
  sample: {max_tokens: 512}               the options of `preftune sample`
  annotate: {reward_model: runs/reward}   of `preftune annotate`
  pairs: {test_share: 0.02}               of `preftune pairs`
  train: {objective: simpo, learning_rate: 5.0e-7, total_batch_size: 128}
  output_dir: runs/onpolicy

The same command goes on after a kill. docs/onpolicy.md has the rest.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the rounds, and print the table.

    Raises:
        PreftuneError: the recipe is wrong, a step failed, or was done with other settings.
    """
    options = _parser().parse_args(arguments)
    from preftune.onpolicy.plan import load_plan
    from preftune.onpolicy.rounds import run_rounds, table

    plan = load_plan(options.recipe, options.settings)
    rows = run_rounds(plan)
    print(table(rows), end="")
    print(f"The last model: {plan.output_dir / f'round-{plan.rounds}' / 'model'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune onpolicy",
        description="Train on the model's own answers, in rounds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="in place of the recipe's")
    return parser
