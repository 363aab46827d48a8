"""What every objective promises. A new file in `objectives/` is held to all of this without a line here."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from preftune.errors import RecipeError
from preftune.objectives import load_objective, objective_class, objective_defaults, objective_names
from preftune.objectives.base import Baseline, Per
from preftune.types import Feedback, ResponseLogps
from tests.objectives.checks import check_extremes, check_gradient
from tests.objectives.inputs import build_inputs

every = pytest.mark.parametrize("name", objective_names())


@every
def test_losses_are_one_a_group_and_rewards_one_a_response(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    out = objective(policy, reference, feedback)
    assert out.losses.shape == (5,)
    assert out.rewards.shape == policy.sums.shape
    assert all(value.shape == (5,) for value in out.terms.values())


@every
def test_rewards_and_terms_carry_no_gradient(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    sums = policy.sums.requires_grad_()
    out = objective(ResponseLogps(sums, policy.lengths), reference, feedback)
    assert out.losses.requires_grad
    assert not out.rewards.requires_grad
    assert not any(value.requires_grad for value in out.terms.values())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extremes_stay_finite_with_finite_gradients(name, dtype):
    check_extremes(load_objective(name), dtype)


@every
def test_gradient_is_that_of_finite_differences(name):
    check_gradient(load_objective(name))


@every
def test_permuting_the_groups_permutes_the_losses(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    order = torch.tensor([3, 0, 4, 2, 1])
    straight = objective(policy, reference, feedback)
    permuted = objective(
        ResponseLogps(policy.sums[order], policy.lengths[order]),
        ResponseLogps(reference.sums[order], reference.lengths[order]),
        Feedback(feedback.scores[order], feedback.valid[order], feedback.baseline),
    )
    assert torch.allclose(permuted.losses, straight.losses[order], rtol=1e-12)
    assert torch.allclose(permuted.rewards, straight.rewards[order], rtol=1e-12)


@every
def test_a_group_local_objective_does_not_look_at_its_neighbours(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    whole = objective(policy, reference, feedback).losses
    alone = [
        objective(policy.select(one), reference.select(one), feedback.select(one)).losses
        for one in (slice(g, g + 1) for g in range(5))
    ]
    assert torch.allclose(torch.cat(alone), whole, rtol=1e-12) == objective.group_local


@every
def test_the_reference_enters_where_it_is_asked_for_and_nowhere_else(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    losses = objective(policy, reference, feedback).losses
    if objective.needs_reference:
        other = ResponseLogps(reference.sums / 2, reference.lengths)
        assert not torch.allclose(objective(policy, other, feedback).losses, losses)
    else:
        assert torch.equal(objective(policy, None, feedback).losses, losses)


@every
def test_the_baseline_enters_where_it_is_asked_for_and_nowhere_else(name):
    objective = load_objective(name)
    policy, reference, feedback = build_inputs(objective)
    other = dataclasses.replace(feedback, baseline=torch.tensor(0.9, dtype=torch.float64))
    same = torch.equal(objective(policy, reference, feedback).losses, objective(policy, reference, other).losses)
    assert same == (objective.baseline == Baseline.NONE)


@every
def test_every_field_is_documented_and_has_a_default(name):
    kind = objective_class(name)
    documented = set(re.findall(r"^\s+(\w+):", kind.__doc__ or "", re.MULTILINE))
    for field in dataclasses.fields(kind):
        assert field.name in documented, f"{name}: '{field.name}' is not in the docstring"
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    assert kind.source
    assert kind.formula
    assert kind.per in Per
    assert "\n" not in load_objective(name).describe()
    assert load_objective(name, **objective_defaults(name)) == kind()


@every
def test_objectives_are_frozen(name):
    objective = load_objective(name)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        objective.beta = 1.0


@every
def test_an_unknown_key_is_refused_with_the_nearest(name):
    key = next(iter(objective_defaults(name)), "beta")
    with pytest.raises(RecipeError, match=f"'{key}x' is not a key of {name}"):
        load_objective(name, **{f"{key}x": 1.0})


def test_an_unknown_objective_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'simpo'"):
        load_objective("simp0")
