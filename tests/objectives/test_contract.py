"""What every objective promises. A new file in `objectives/` is held to all of this without a line here."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from preftune.errors import RecipeError
from preftune.objectives import load_objective, objective_class, objective_defaults, objective_names
from preftune.objectives.base import Per
from preftune.types import Feedback, Layout, ResponseLogps

RESPONSES = {Layout.SINGLE: 1, Layout.PAIRED: 2, Layout.UNPAIRED: 2, Layout.RANKED: 4}
every = pytest.mark.parametrize("name", objective_names())


def build_inputs(name: str, groups: int = 5, seed: int = 0):
    """Policy, reference and feedback of ordinary size, in float64."""
    count = RESPONSES[objective_class(name).layout]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (groups, count), generator=generator)
    policy = -torch.rand(groups, count, generator=generator, dtype=torch.float64) * lengths
    reference = -torch.rand(groups, count, generator=generator, dtype=torch.float64) * lengths
    scores = torch.arange(count, 0, -1, dtype=torch.float32).expand(groups, count)
    feedback = Feedback(scores, torch.ones(groups, count, dtype=torch.bool), torch.tensor(0.1, dtype=torch.float64))
    return ResponseLogps(policy, lengths), ResponseLogps(reference, lengths), feedback


@every
def test_losses_are_one_a_group_and_rewards_one_a_response(name):
    policy, reference, feedback = build_inputs(name)
    out = load_objective(name)(policy, reference, feedback)
    assert out.losses.shape == (5,)
    assert out.rewards.shape == policy.sums.shape
    assert all(value.shape == (5,) for value in out.terms.values())


@every
def test_rewards_carry_no_gradient(name):
    policy, reference, feedback = build_inputs(name)
    sums = policy.sums.requires_grad_()
    out = load_objective(name)(ResponseLogps(sums, policy.lengths), reference, feedback)
    assert out.losses.requires_grad
    assert not out.rewards.requires_grad


@every
@pytest.mark.parametrize("value", [0.0, -1e-6, -1e4])
@pytest.mark.parametrize("length", [1, 4000])
def test_extremes_stay_finite_with_finite_gradients(name, value, length):
    policy, reference, feedback = build_inputs(name)
    sums = torch.full_like(policy.sums, value)
    sums[:, 0] = 0.0  # as far apart as it goes
    sums.requires_grad_()
    lengths = torch.full_like(policy.lengths, length)
    out = load_objective(name)(ResponseLogps(sums, lengths), reference, feedback)
    out.losses.sum().backward()
    assert out.losses.isfinite().all()
    assert out.rewards.isfinite().all()
    assert sums.grad.isfinite().all()


@every
def test_gradient_is_that_of_finite_differences(name):
    policy, reference, feedback = build_inputs(name)
    objective = load_objective(name)

    def losses(sums: torch.Tensor) -> torch.Tensor:
        return objective(ResponseLogps(sums, policy.lengths), reference, feedback).losses

    assert torch.autograd.gradcheck(losses, policy.sums.clone().requires_grad_())


@every
def test_permuting_the_groups_permutes_the_losses(name):
    policy, reference, feedback = build_inputs(name)
    order = torch.tensor([3, 0, 4, 2, 1])
    objective = load_objective(name)
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
    if not objective.group_local:
        return
    policy, reference, feedback = build_inputs(name)
    whole = objective(policy, reference, feedback).losses
    for g in range(5):
        one = slice(g, g + 1)
        alone = objective(policy.select(one), reference.select(one), feedback.select(one)).losses
        assert torch.allclose(alone, whole[one], rtol=1e-12)


@every
def test_every_field_is_documented_and_has_a_default(name):
    kind = objective_class(name)
    documented = set(re.findall(r"^\s+(\w+):", kind.__doc__ or "", re.MULTILINE))
    for field in dataclasses.fields(kind):
        assert field.name in documented, f"{name}: '{field.name}' is not in the docstring"
        assert field.default is not dataclasses.MISSING
    assert kind.source
    assert kind.formula
    assert kind.per in Per
    assert load_objective(name).describe()


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
