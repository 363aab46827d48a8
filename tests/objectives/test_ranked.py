"""RRHF and the reward model: any number of responses, gaps, ties."""

from __future__ import annotations

from math import log

import pytest
import torch

from preftune.objectives import load_objective
from tests.objectives import oracle
from tests.objectives.inputs import feedback, logps

ranked = pytest.mark.parametrize("name", ["rrhf", "reward"])

# Four groups of up to four responses. Scores: in order; with a tie and out of order; none, and a gap; a lone response.
SUMS = ((-3.0, -1.0, -2.0, -4.0), (-2.0, -9.0, -1.0, -4.0), (-5.0, -4.0, -4.5, 0.0), (-2.0, 0.0, 0.0, 0.0))
LENGTHS = ((2, 3, 1, 5), (4, 3, 2, 7), (3, 2, 9, 0), (4, 0, 0, 0))
SCORES = ((4.0, 3.0, 2.0, 1.0), (1.0, 5.0, 5.0, -2.0), (0.0, 0.0, 0.0, 0.0), (3.0, 0.0, 0.0, 0.0))
VALID = ((True,) * 4, (True,) * 4, (True, True, True, False), (True, False, False, False))


def groups():
    return logps(*SUMS, lengths=LENGTHS), feedback(*SCORES, valid=VALID, baseline=0.0)


def test_rrhf_by_hand():
    """A = -1, -3, -2 for scores 3, 2, 1: only the third is ahead of a better one, of the second by 1."""
    out = load_objective("rrhf")(logps((-2.0, -3.0, -8.0), lengths=((2, 1, 4),)), None, feedback((3.0, 2.0, 1.0)))
    assert out.losses.tolist() == [1.0]
    assert out.rewards.tolist() == [[-1.0, -3.0, -2.0]]


def test_rrhf_counts_every_pair_that_is_in_the_wrong_order():
    """A = -3, -2, -1 with the best first: 1 + 2 + 1."""
    policy = logps((-3.0, -2.0, -1.0))
    assert load_objective("rrhf")(policy, None, feedback((3.0, 2.0, 1.0))).losses.tolist() == [4.0]
    assert load_objective("rrhf")(policy, None, feedback((1.0, 2.0, 3.0))).losses.tolist() == [0.0]


def test_reward_of_a_pair_by_hand():
    """s = log 3 and 0: σ = 3/4; a margin of log 3 leaves σ(0); centring adds 0.5·(log 3)²."""
    scores = logps((log(3), 0.0))

    def loss(known=(0.0, 0.0), **keys):
        return load_objective("reward", **keys)(scores, None, feedback(known)).losses.item()

    assert loss() == pytest.approx(log(4 / 3))
    assert loss(margin=log(3)) == pytest.approx(log(2))
    assert loss(known=(2.0, 1.0), margin_scale=log(3)) == pytest.approx(log(2))
    assert loss(known=(1.0, 2.0)) == pytest.approx(log(4))  # the second is the better one
    assert loss(center_rewards_coefficient=0.5) == pytest.approx(log(4 / 3) + 0.5 * log(3) ** 2)


def test_reward_is_a_mean_over_the_pairs_of_a_group():
    """Three equal scores: each of the three pairs costs log 2."""
    policy = logps((1.0, 1.0, 1.0))
    assert load_objective("reward")(policy, None, feedback((3.0, 2.0, 1.0))).losses.item() == pytest.approx(log(2))


@pytest.mark.parametrize(
    ("name", "keys"),
    [("rrhf", {}), ("reward", {}), ("reward", {"center_rewards_coefficient": 0.1, "margin": 0.2, "margin_scale": 0.3})],
    ids=str,
)
def test_gaps_and_ties_are_as_in_a_loop_over_pairs(name, keys):
    policy, known = groups()
    wanted = oracle.losses(name, keys, policy, policy, known)
    assert load_objective(name, **keys)(policy, None, known).losses.tolist() == pytest.approx(wanted)
    assert wanted[3] == 0


@ranked
def test_a_gap_neither_enters_nor_gets_a_gradient(name):
    policy, known = groups()
    objective = load_objective(name, **({"center_rewards_coefficient": 0.1} if name == "reward" else {}))
    wanted = objective(policy, None, known).losses
    sums = policy.sums.masked_fill(~known.valid, float("nan")).requires_grad_()
    out = objective(type(policy)(sums, policy.lengths), None, known)
    out.losses.sum().backward()
    assert torch.equal(out.losses, wanted)
    assert sums.grad.isfinite().all()
    assert (sums.grad[~known.valid] == 0).all()
    assert (sums.grad[2, :3] != 0).any()


@ranked
def test_equal_scores_are_not_compared(name):
    """Swapping the two responses that share a score changes nothing."""
    known = feedback((2.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    straight, swapped = load_objective(name)(logps((-3.0, -1.0, -2.0), (-3.0, -2.0, -1.0)), None, known).losses
    assert straight == swapped > 0


@ranked
def test_without_scores_the_order_decides(name):
    policy = logps((-1.0, -2.0, -3.0), (-3.0, -2.0, -1.0))
    losses = load_objective(name)(policy, None, feedback((0.0,) * 3, (0.0,) * 3)).losses
    by_score = load_objective(name)(policy, None, feedback((3.0, 2.0, 1.0), (3.0, 2.0, 1.0))).losses
    assert torch.equal(losses, by_score)
    assert losses[0] < losses[1]
