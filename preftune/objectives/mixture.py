"""Mixture: a weighted sum of objectives.

    L = Σ w_i·L_i

The default is the preference and the quality loss of MPO, 0.8·DPO + 0.2·BCO: Wang et al. 2024, arXiv:2411.10442,
Section 4.1. With `sft_weight: 1.0` and `sft_normalization: sequence`, its generation loss, it is MPO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch

from preftune.errors import RecipeError
from preftune.objectives import load_objective
from preftune.objectives.base import Baseline, Objective, is_number, require
from preftune.types import Feedback, Layout, ObjectiveOutput, ResponseLogps


class Part(NamedTuple):
    name: str
    weight: float
    objective: Objective


@dataclass(frozen=True)
class Mixture(Objective):
    """Objectives that read the same groups, each with its weight. Each part's losses are logged as `losses/NAME`.

    Layout, reference, baseline and so on are those of the parts; the class attributes are those of the default mixture.
    Logged rewards are the mean of the parts' rewards by weight; where a part has a running baseline, the mean of its
    rewards, they are that part's alone. The SFT term of a part's paper is not added: set `sft_weight`.

    Args:
        mixture: objective name -> weight, > 0, or -> {weight: 0.2, beta: 0.5, ...} with keys of that objective.

    Raises:
        RecipeError: a weight is not above 0, an objective or a key is not known, or the objectives do not read the same
            groups.
    """

    layout: ClassVar[Layout] = Layout.PAIRED
    needs_reference: ClassVar[bool] = True
    baseline: ClassVar[Baseline] = Baseline.RUNNING
    source: ClassVar[str] = "arXiv:2411.10442, Section 4.1"
    formula: ClassVar[str] = "Σ weight·L over the objectives of the mixture"

    mixture: dict[str, Any] = field(default_factory=lambda: {"dpo": 0.8, "bco_pair": 0.2})

    def __post_init__(self) -> None:
        given = self.mixture
        require(isinstance(given, dict) and bool(given), "mixture", "objective names with their weights", given)
        first, *others = self.parts
        for other in others:
            _require_alike(first, other)
        objectives = [part.objective for part in self.parts]
        derived = {
            "layout": objectives[0].layout,
            "per": objectives[0].per,
            "reads": objectives[0].reads,
            "needs_reference": any(objective.needs_reference for objective in objectives),
            "group_local": all(objective.group_local for objective in objectives),
            "baseline": next((o.baseline for o in objectives if o.baseline != Baseline.NONE), Baseline.NONE),
        }
        for attribute, value in derived.items():
            object.__setattr__(self, attribute, value)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(_read_parts(self.mixture))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return tuple(part.objective for part in self.parts)

    def __call__(self, policy: ResponseLogps, reference: ResponseLogps | None, feedback: Feedback) -> ObjectiveOutput:
        outputs = [(part, part.objective(policy, reference, feedback)) for part in self.parts]
        running = [(part, out) for part, out in outputs if part.objective.baseline == Baseline.RUNNING]
        rewarding = running or outputs
        losses = torch.stack([part.weight * out.losses for part, out in outputs]).sum(dim=0)
        rewards = torch.stack([part.weight * out.rewards for part, out in rewarding]).sum(dim=0)
        terms = {f"losses/{part.name}": out.losses.detach() for part, out in outputs}
        for _, out in outputs:
            terms |= out.terms
        return ObjectiveOutput(losses, rewards / sum(part.weight for part, _ in rewarding), terms)

    def describe(self) -> str:
        return " + ".join(f"{part.weight:g}·[{part.objective.describe()}]" for part in self.parts)


def _read_parts(mixture: dict[str, Any]) -> Iterator[Part]:
    for name, given in mixture.items():
        if name == "mixture":
            raise RecipeError("'mixture' cannot hold a mixture. Name its objectives here, with their weights.")
        if name == "sft":
            raise RecipeError("'mixture' cannot hold sft. Leave it out, and set sft_weight instead.")
        keys = {str(key): value for key, value in given.items()} if isinstance(given, dict) else {"weight": given}
        weight = keys.pop("weight", None)
        if not is_number(weight) or weight <= 0:
            raise RecipeError(f"'mixture' needs a weight above 0 for {name}, found {weight!r}.")
        try:
            yield Part(name, weight, load_objective(name, **keys))
        except RecipeError as error:
            raise RecipeError(f"'mixture' {name}: {error}") from None


def _require_alike(first: Part, other: Part) -> None:
    for attribute in ("layout", "reads", "per"):
        wanted, found = getattr(first.objective, attribute), getattr(other.objective, attribute)
        if found != wanted:
            raise RecipeError(
                f"'mixture' needs objectives of one {attribute}: {first.name} has {wanted}, {other.name} has {found}. "
                "Remove one of them."
            )
