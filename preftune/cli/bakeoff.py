"""`preftune bakeoff`: the paper's baselines on one's own data, in one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preftune.errors import RecipeError

_EPILOG = """examples:
  preftune bakeoff my.yaml --seeds 0 1 2
  preftune bakeoff my.yaml --methods simpo dpo orpo --try learning_rate=3e-7,5e-7,1e-6
  preftune bakeoff my.yaml --search --jobs 4

The recipe gives model, data and budget; what belongs to an objective is left out of it, and each method takes its
published setting (--search: its published grid). The same command goes on after a stop.
"""


def main(arguments: Sequence[str]) -> int:
    """Run what is left of it, and print the table; 1 where a method never ended well.

    Raises:
        PreftuneError: the recipe, a method or a measure is wrong; another process works in the folder.
    """
    options = _parser().parse_args(arguments)
    from preftune.experiments.bakeoff import (
        METHODS,
        base_recipe,
        best_of_each,
        page,
        settings_of,
        without_accuracy,
        write_bakeoff,
    )
    from preftune.experiments.grid import read_grid
    from preftune.experiments.sweep import Plan, run_sweep

    if options.jobs < 1:
        raise RecipeError(f"--jobs {options.jobs}: give the number of runs at a time, at least 1.")
    methods = tuple(dict.fromkeys(options.methods or METHODS))
    settings = settings_of(methods, read_grid(options.tries), options.search)
    folder = Path(options.output or f"runs/bakeoff-{Path(options.recipe).stem}")
    rewarded = ("reward",) if options.reward_model else ()
    measures = dict.fromkeys((options.measure, "accuracy", "likelihood", *rewarded, "health"))
    others = without_accuracy(methods)
    if others:
        if options.measure == "accuracy":
            names = ", ".join(others)
            raise RecipeError(
                f"--measure accuracy is of pairs, which {names} do not train on. Leave {names} out of --methods."
            )
        measures.pop("accuracy")
    plan = Plan(
        recipe=base_recipe(Path(options.recipe), folder),
        overrides=tuple(options.settings),
        settings=tuple(settings),
        seeds=tuple(dict.fromkeys(options.seeds)),
        folder=folder,
        measure=options.measure,
        also=tuple(measures),
        reward_model=options.reward_model,
        prompts=options.prompts,
        text=options.text,
        max_tokens=options.max_tokens,
        jobs=options.jobs,
    )
    rows = run_sweep(plan)
    write_bakeoff(plan, rows)
    print(page(plan, rows), end="")
    print(f"All settings and runs: {folder / 'bakeoff.json'}")
    return 0 if all(row.whole for row in best_of_each(rows)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune bakeoff",
        description="Compare SimPO with the paper's baselines on your data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE.yaml")
    add("settings", nargs="*", metavar="KEY=VALUE", help="in place of the recipe's, for all methods")
    add("--methods", nargs="+", metavar="NAME", help="some of sft rrhf slic_hf dpo ipo cpo kto orpo rdpo simpo (all)")
    add("--search", action="store_true", help="run each method's published grid")
    add("--try", dest="tries", action="append", default=[], metavar="KEY=V,V", help="values to try for every method")
    add("--seeds", type=int, nargs="+", default=[42], metavar="N", help="each setting is run with all of them (42)")
    add("--measure", default="likelihood", metavar="NAME", help="what ranks: likelihood, reward, health (likelihood)")
    add("--reward-model", metavar="MODEL", help="scores fresh answers, one more column")
    add("--prompts", metavar="F.jsonl", help="the prompts of the fresh answers")
    add("--text", metavar="F.jsonl", help="rows with answers for the health; else the recipe's eval_dataset")
    add("--max-tokens", type=int, default=256, metavar="N", help="of a fresh answer (256)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, on a GPU each where there are GPUs (1)")
    add("--output", metavar="FOLDER", help="runs/bakeoff-RECIPE by default")
    return parser
