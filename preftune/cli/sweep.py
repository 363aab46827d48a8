"""`preftune sweep`: a recipe with other values of some keys, ranked by one measure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preftune.errors import RecipeError

_EPILOG = """examples:
  preftune sweep my.yaml --try learning_rate=3e-7,5e-7 --try beta=2,2.5 --seeds 0 1 2
  preftune sweep my.yaml --grid simpo --random 8 --output runs/search
  preftune sweep my.yaml use_peft=true --try learning_rate=2e-5,5e-5,1e-4,2e-4 --together
  preftune sweep my.yaml max_steps=200 --try gamma_beta_ratio=0.3,0.5 --measure reward \\
      --reward-model runs/reward --prompts heldout.jsonl

Measures: accuracy (of held-out pairs), reward (mean score of fresh answers), health (nats a token by which held-out
answers are less likely than before training), or any metric of a run's summary. The same command goes on after a stop.
The best setting is written as winner.yaml, a recipe that runs.
--together: LoRA runs that differ in the objective, its keys, and those of optimizer and schedule train in one process,
over one base model and in the same packed steps, each as it would alone; the rest trains run by run, with the reason.
"""


def main(arguments: Sequence[str]) -> int:
    """Run what is left of the sweep, and print its table; 1 where no setting ended well with every seed.

    Raises:
        PreftuneError: the recipe, a setting or the measure is wrong; another process works in the folder.
    """
    options = _parser().parse_args(arguments)
    from preftune.experiments.grid import combinations, published, read_grid
    from preftune.experiments.sweep import Plan, run_sweep
    from preftune.experiments.sweep_page import page, write_sweep

    if options.jobs < 1:
        raise RecipeError(f"--jobs {options.jobs}: give the number of runs at a time, at least 1.")
    grid = published(options.grid, "search") if options.grid else {}
    grid |= read_grid(options.tries)
    objective = [f"objective={options.grid}"] if options.grid else []
    plan = Plan(
        recipe=Path(options.recipe),
        overrides=(*objective, *options.settings),
        settings=tuple(combinations(grid, options.random, options.draw_seed)),
        seeds=tuple(dict.fromkeys(options.seeds)),
        folder=Path(options.output or f"runs/sweep-{Path(options.recipe).stem}"),
        measure=options.measure,
        minimize=options.minimize,
        reward_model=options.reward_model,
        prompts=options.prompts,
        text=options.text,
        max_tokens=options.max_tokens,
        jobs=options.jobs,
        together=options.together,
    )
    rows = run_sweep(plan)
    write_sweep(plan, rows)
    print(page(plan, rows), end="")
    if not rows[0].whole:
        print(f"No setting ended well with every seed; {plan.folder / 'arms'} has what each run said.")
        return 1
    print(f"The best setting as a recipe: {plan.folder / 'winner.yaml'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune sweep",
        description="Run a recipe with other values of some keys, and rank them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE.yaml")
    add("settings", nargs="*", metavar="KEY=VALUE", help="in place of the recipe's, for all runs")
    add("--try", dest="tries", action="append", default=[], metavar="KEY=V,V", help="a key and the values to try")
    add("--grid", metavar="NAME", help="the published grid of a method: simpo, dpo, ipo, cpo, kto, orpo, rdpo ...")
    add("--random", type=int, metavar="N", help="only N combinations, drawn")
    add("--draw-seed", type=int, default=0, metavar="N", help="of --random (0)")
    add("--seeds", type=int, nargs="+", default=[42], metavar="N", help="each combination is run with all of them (42)")
    add("--measure", default="accuracy", metavar="NAME", help="accuracy, reward, health, or a metric (accuracy)")
    add("--minimize", action="store_true", help="the lowest measure is the best")
    add("--reward-model", metavar="MODEL", help="scores the fresh answers of --measure reward")
    add("--prompts", metavar="F.jsonl", help="the prompts of the fresh answers")
    add("--text", metavar="F.jsonl", help="rows with answers for --measure health; else the recipe's eval_dataset")
    add("--max-tokens", type=int, default=256, metavar="N", help="of a fresh answer (256)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, on a GPU each where there are GPUs (1)")
    add("--together", action="store_true", help="LoRA runs of one seed train in one process, over one base model")
    add("--output", metavar="FOLDER", help="runs/sweep-RECIPE by default")
    return parser
