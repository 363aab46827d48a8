from __future__ import annotations

from math import log

import pytest
import torch

from preftune.objectives import load_objective
from preftune.types import ResponseLogps
from tests.objectives.inputs import feedback, logps

LOG3 = log(3)


def loss(ratio: float, desirable: bool, z: float = 0.0, **keys) -> float:
    objective = load_objective("kto", **{"beta": 1.0, **keys})
    out = objective(logps((-5.0 + ratio,)), logps((-5.0,)), feedback((1.0 if desirable else 0.0,), baseline=z))
    return out.losses.item()


def test_values_by_hand():
    """σ(log 3) = 3/4."""
    assert loss(LOG3, desirable=True) == pytest.approx(1 / 4)
    assert loss(LOG3, desirable=False) == pytest.approx(3 / 4)
    assert loss(LOG3, desirable=True, z=LOG3) == pytest.approx(1 / 2)
    assert loss(LOG3, desirable=False, z=2 * LOG3) == pytest.approx(1 / 4)
    assert loss(LOG3, desirable=True, beta=0.5, z=-LOG3) == loss(LOG3, desirable=True, beta=0.5)  # z is at least 0


def test_each_class_has_its_weight():
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    assert loss(LOG3, True, **weights) == pytest.approx(1.5 / 4)
    assert loss(LOG3, False, **weights) == pytest.approx(0.5 * 3 / 4)


def test_desirable_responses_are_pulled_up_and_undesirable_ones_down():
    up = [loss(ratio, desirable=True) for ratio in (-2, -1, 0, 1, 2)]
    down = [loss(ratio, desirable=False) for ratio in (-2, -1, 0, 1, 2)]
    assert up == sorted(up, reverse=True)
    assert down == sorted(down)


def test_negative_and_zero_scores_are_undesirable():
    objective = load_objective("kto")
    policy, reference = logps((-4.0,), (-4.0,), (-4.0,)), logps((-5.0,), (-5.0,), (-5.0,))
    losses = objective(policy, reference, feedback((0.5,), (0.0,), (-1.0,), baseline=0.0)).losses
    assert losses[0] < losses[1] == losses[2]


def test_no_gradient_goes_through_the_reference_point():
    known = feedback((1.0,), baseline=0.7)
    known.baseline.requires_grad_()
    policy = logps((-4.0,))
    policy.sums.requires_grad_()
    load_objective("kto")(policy, logps((-5.0,)), known).losses.sum().backward()
    assert known.baseline.grad is None
    assert policy.sums.grad.item() < 0


def test_a_probe_beside_the_response_does_not_enter():
    objective, known = load_objective("kto"), feedback((1.0,), (0.0,), baseline=0.2)
    alone = objective(logps((-4.0,), (-3.0,)), logps((-5.0,), (-5.0,)), known)
    both = logps((-4.0, -7.0), (-3.0, -1.0))
    sums = both.sums.requires_grad_()
    joint = objective(ResponseLogps(sums, both.lengths), logps((-5.0, -2.0), (-5.0, -9.0)), known)
    joint.losses.sum().backward()
    assert torch.equal(joint.losses, alone.losses)
    assert torch.equal(joint.rewards[:, :1], alone.rewards)
    assert (sums.grad[:, 1] == 0).all()
