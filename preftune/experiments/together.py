"""Which arms of a sweep train together, and why the others do not."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import yaml

from preftune.experiments.arms import Arm
from preftune.recipe import load_recipe
from preftune.recipe.together import common_part, obstacle

log = logging.getLogger(__name__)


def joined(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms in groups of two or more that can train together, in their order; a line says what stays out."""
    groups: dict[str, list[Arm]] = {}
    reasons: dict[str, list[str]] = {}
    for arm in arms:
        recipe = load_recipe(None, yaml.safe_load(arm.recipe))
        why = obstacle(recipe)
        if why is None:
            groups.setdefault(json.dumps(common_part(recipe), sort_keys=True, default=str), []).append(arm)
        else:
            reasons.setdefault(why, []).append(arm.name)
    lone = [group[0].name for group in groups.values() if len(group) == 1]
    if lone:
        reasons["no other has the same data, model, adapter and seed"] = lone
    for why, names in reasons.items():
        log.warning("Not together, but run by run: %s (%s).", ", ".join(names), why)
    return [group for group in groups.values() if len(group) > 1]
