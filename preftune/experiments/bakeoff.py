"""`preftune bakeoff`: the baselines of the SimPO paper on one's own data, each at one setting or over its grid.

All methods start from the same model and see the same rows, in the same batches, for the same number of steps
(`max_steps`; by epochs KTO takes twice as many, as each response of a pair is a row of its own there), and are measured
alike. A method's own keys come from `grids.yaml`; the rest, the learning rate too, from the recipe, unless `tries`
gives several values: then each method is shown at its best, chosen on the very rows that the table shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.experiments.grid import combinations, published
from preftune.experiments.sweep import Plan, Ranked
from preftune.experiments.sweep_page import about, cells, facts, faults
from preftune.objectives import method_names, objective_class, objective_defaults
from preftune.recipe.compat import ALIASES, GAMMAS
from preftune.recipe.layers import read_file
from preftune.types import Layout

# Layouts whose runs have an accuracy: of the implicit reward on held-out pairs.
RANKED = (Layout.PAIRED, Layout.RANKED)
METHODS = ("sft", "rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "simpo")


def settings_of(methods: Sequence[str], tries: Mapping[str, list[Any]], search: bool) -> list[dict[str, Any]]:
    """What is run: each method at its one setting, or over its published grid, times `tries`.

    Raises:
        RecipeError: a method has no published setting.
    """
    found = []
    for method in methods:
        own = published(method, "search") if search else {key: [one] for key, one in published(method, "best").items()}
        found += [{"objective": method, **one} for one in combinations({**own, **tries} or {"objective": [method]})]
    return found


def base_recipe(path: Path, folder: Path) -> Path:
    """The recipe without what belongs to an objective, which each method sets for itself; written to `folder`."""
    foreign = {key for name in method_names() for key in objective_defaults(name)} | set(GAMMAS)
    foreign |= {"objective", "loss_type", "sft_weight", "sft_normalization"}
    foreign |= {alias for alias, key in ALIASES.items() if key in foreign}
    kept = {key: given.value for key, given in read_file(path).items() if key not in foreign}
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return base


def without_accuracy(methods: Sequence[str]) -> list[str]:
    """Those whose runs do not tell the accuracy of an implicit reward on pairs."""
    return [name for name in methods if objective_class(name).layout not in RANKED]


def best_of_each(rows: Sequence[Ranked]) -> list[Ranked]:
    """Of ranked rows the first of each method."""
    first: dict[str, Ranked] = {}
    for row in rows:
        first.setdefault(row.settings["objective"], row)
    return list(first.values())


def page(plan: Plan, rows: Sequence[Ranked]) -> str:
    """The table, the best method first."""
    tried = len(rows) > len(best_of_each(rows))
    header = ["method", "setting", *plan.measures, "collapsed", "failed", "seconds"]
    lines = ["# Bake-off", "", *about(plan)]
    if tried:
        lines.append(
            f"Each method at the best of its settings ({len(rows)} in all), chosen by {plan.measure} on the rows that "
            "the table shows: the figures flatter those with more settings."
        )
    lines += ["", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in best_of_each(rows):
        setting = ", ".join(f"{key} {value}" for key, value in row.settings.items() if key != "objective")
        lines.append(f"| {' | '.join([row.settings['objective'], setting, *cells(plan, row)])} |")
    return "\n".join([*lines, *faults(rows), ""])


def write_bakeoff(plan: Plan, rows: Sequence[Ranked]) -> None:
    """`bakeoff.md` and `bakeoff.json` into the folder."""
    record = {"measure": plan.measure, "settings": [facts(row) for row in rows]}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (plan.folder / "bakeoff.json").write_text(text, encoding="utf-8")
    (plan.folder / "bakeoff.md").write_text(page(plan, rows), encoding="utf-8")
