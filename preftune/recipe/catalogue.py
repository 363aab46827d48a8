"""What there is to know of each objective, read from its class: for `preftune objectives` and its page in docs/."""

from __future__ import annotations

import inspect
from typing import Any

from preftune.objectives import objective_class, objective_defaults, objective_names
from preftune.objectives.base import Baseline, Method, Reads
from preftune.recipe.training import training_defaults


def objective_facts(name: str) -> dict[str, Any]:
    """Name, layout, formula, source, keys with defaults, reference, cost and docstrings of one objective.

    Raises:
        RecipeError: there is no such objective.
    """
    kind = objective_class(name)
    objective = kind()
    keys = objective_defaults(name)
    if kind.published_sft_weight:
        keys |= {"sft_weight": kind.published_sft_weight, "sft_normalization": kind.published_sft_normalization}
    rate = training_defaults(name, evaluates=False, adapter=False)["learning_rate"]
    return {
        "name": name,
        "layout": str(objective.layout),
        "formula": kind.formula,
        "source": kind.source,
        "defaults": keys,
        "learning_rate": rate,
        "needs_reference": objective.needs_reference,
        "cost": cost(objective),
        "doc": "\n\n".join(inspect.getdoc(part) or "" for part in (inspect.getmodule(kind), kind)),
    }


def all_facts() -> list[dict[str, Any]]:
    """Of all objectives, by name."""
    return [objective_facts(name) for name in objective_names()]


def cost(objective: Method) -> str:
    """What it needs beside one forward and one backward pass of the model."""
    needs = []
    if objective.needs_reference:
        needs.append("reference: a pass, and a copy of what is trained (none with an adapter, none precomputed)")
    if objective.baseline == Baseline.PROBES:
        needs.append("a pass over mismatched responses")
    if not objective.group_local:
        needs.append("a first pass over the step")
    if objective.reads == Reads.SCORES:
        needs.append("a value head, and no logits")
    return "; ".join(needs) or "nothing more"
