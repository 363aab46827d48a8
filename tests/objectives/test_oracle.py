"""Every objective, with several settings, against the papers' formulas in float64 and at the ends of float32."""

from __future__ import annotations

import pytest
import torch

from preftune.objectives import load_objective, objective_names
from tests.objectives import oracle
from tests.objectives.checks import check_extremes, check_gradient
from tests.objectives.inputs import SETTINGS, build_inputs, cast

each = pytest.mark.parametrize(("name", "keys"), SETTINGS, ids=str)
changed = pytest.mark.parametrize(("name", "keys"), [setting for setting in SETTINGS if setting[1]], ids=str)


def test_no_objective_is_left_out():
    """A new objective is tried here once it has its formula in oracle.py and its settings in inputs.py."""
    assert {name for name, _ in SETTINGS} == set(objective_names())


@each
def test_losses_are_those_of_the_paper(name, keys):
    objective = load_objective(name, **keys)
    for seed in range(5):
        policy, reference, feedback = build_inputs(objective, groups=8, seed=seed)
        wanted = oracle.losses(name, keys, policy, reference, feedback)
        assert objective(policy, reference, feedback).losses.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@each
def test_float32_is_close_to_float64(name, keys):
    objective = load_objective(name, **keys)
    policy, reference, feedback = build_inputs(objective, groups=8)
    exact = objective(policy, reference, feedback).losses
    short = objective(cast(policy, torch.float32), cast(reference, torch.float32), feedback).losses
    assert torch.allclose(short.double(), exact, rtol=1e-4, atol=1e-5)


@changed
def test_gradient_is_that_of_finite_differences(name, keys):
    check_gradient(load_objective(name, **keys))


@changed
def test_extremes_stay_finite_in_float32(name, keys):
    check_extremes(load_objective(name, **keys), torch.float32)
