"""Every objective on log-probs, alone and with each form of the SFT term: the cut of a step changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from preftune.data.plan import Cut
from preftune.model.policy import to_policy
from preftune.model.reference import FrozenModel
from preftune.objectives import load_objective, objective_names
from preftune.objectives.base import Reads
from preftune.train.loader import StepSource
from preftune.train.passes import prepare_step
from preftune.train.step import SFT_NORMALIZATIONS, StepLoss, run_step
from preftune.types import Layout
from tests.objectives.inputs import RESPONSES
from tests.small import build_groups, build_model, gradients, worst_gradient_gap

OBJECTIVES = {name: load_objective(name) for name in objective_names()}
CASES = [
    (name, term)
    for name, objective in OBJECTIVES.items()
    if objective.reads == Reads.LOGPS
    for term in (None, *(SFT_NORMALIZATIONS if objective.layout in (Layout.PAIRED, Layout.RANKED) else ()))
]


def run(objective, term, groups, cut):
    """Gradient and loss of one step in float64."""
    loss = StepLoss(objective, 0.7, term) if term else StepLoss(objective)
    policy, other = (to_policy(build_model("llama", torch.float64, seed=seed), "packed") for seed in (0, 5))
    step = StepSource(groups, len(groups), cut, seed=None, probes=objective.layout == Layout.UNPAIRED)[0, 0]
    reference = FrozenModel(other) if objective.needs_reference else None
    total = run_step(policy, prepare_step(policy, step, loss, reference=reference), loss)
    return gradients(policy), total.item()


@pytest.mark.parametrize(("name", "term"), CASES)
def test_the_cut_changes_nothing(name, term):
    objective = OBJECTIVES[name]
    groups = build_groups(5, responses=RESPONSES[objective.layout])
    if objective.layout == Layout.UNPAIRED:
        groups = [replace(group, scores=(float(row % 2),)) for row, group in enumerate(groups)]
    wanted, loss = run(objective, term, groups, Cut())
    for cut in (Cut(max_groups=1), Cut(max_tokens=70)):
        found, total = run(objective, term, groups, cut)
        assert total == pytest.approx(loss, rel=1e-6)
        assert worst_gradient_gap(found, wanted) <= 1e-6
