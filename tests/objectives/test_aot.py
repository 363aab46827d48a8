from __future__ import annotations

from math import exp, log1p

import pytest
import torch

from preftune.objectives import load_objective
from tests.objectives.inputs import build_inputs, feedback, logps

# Margins of the policy 4, 1, 2 and of the reference 0, 3, -1: sorted 1 2 4 and -1 0 3, so that they meet as
# 4 with 3, 1 with -1, 2 with 0.
POLICY, REFERENCE = logps((-1.0, -5.0), (-4.0, -5.0), (-3.0, -5.0)), logps((-5.0, -5.0), (-2.0, -5.0), (-6.0, -5.0))
NONE = feedback(*[(0.0, 0.0)] * 3)


def cost(z: float) -> float:
    return log1p(exp(-z))


def test_paired_margins_meet_by_rank():
    losses = load_objective("aot", beta=1.0)(POLICY, REFERENCE, NONE).losses
    assert losses.tolist() == pytest.approx([cost(1), cost(2), cost(2)])


def test_unpaired_logratios_meet_by_rank():
    policy, reference = logps((-1.0, -9.0), (-8.0, -2.0), (-3.0, -5.0)), logps(*[(-5.0, -5.0)] * 3)
    losses = load_objective("aot", beta=1.0, loss_type="unpaired")(policy, reference, NONE).losses
    assert losses.tolist() == pytest.approx([cost(4 - 3), cost(-3 + 4), cost(2 - 0)])  # 4 -3 2 meet -4 3 0


def test_smoothing_weighs_the_other_direction():
    losses = load_objective("aot", beta=1.0, label_smoothing=0.1)(POLICY, REFERENCE, NONE).losses
    assert losses[0].item() == pytest.approx(0.9 * cost(1) + 0.1 * cost(-1))


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_the_loss_of_a_group_depends_on_the_others(kind):
    objective = load_objective("aot", loss_type=kind)
    assert not objective.group_local
    policy, reference, known = build_inputs(objective)
    one = slice(0, 1)
    alone = objective(policy.select(one), reference.select(one), known.select(one)).losses
    assert not torch.allclose(objective(policy, reference, known).losses[one], alone)


def test_no_transport_costs_less_than_sorting_for_a_convex_cost():
    """Whatever group the reference's margins are paired with, the sorted pairing has the lowest total."""
    objective = load_objective("aot", beta=1.0)
    best = objective(POLICY, REFERENCE, NONE).losses.sum().item()
    u, v = [4.0, 1.0, 2.0], [0.0, 3.0, -1.0]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    totals = [sum(cost(u[i] - v[j]) for i, j in enumerate(order)) for order in orders]
    assert best == pytest.approx(min(totals))
