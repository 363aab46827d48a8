from __future__ import annotations

import math

import pytest
import torch

from preftune.errors import RecipeError
from preftune.objectives import load_objective
from preftune.types import Feedback, ResponseLogps

# average log-probs (nats per token) of three pairs, and their losses: (beta, ratio, kind, smoothing) -> losses
CHOSEN, REJECTED = [-0.5, -1.0, -0.3], [-1.0, -0.8, -0.3]
PUBLISHED = {
    (2.0, 0.25, "sigmoid", 0.0): [0.474076984180, 1.241153874732, 0.974076984180],
    (2.5, 0.55, "sigmoid", 0.0): [0.757599035317, 2.017675057606, 1.600412651602],
    (10.0, 0.3, "sigmoid", 0.0): [0.126928011043, 5.006715348489, 3.048587351574],
    (2.0, 0.8, "sigmoid", 0.0): [1.037487950486, 2.126928011043, 1.783900740888],
    (10.0, 0.5, "sigmoid", 0.1): [0.693147180560, 6.300911466454, 4.506715348489],
    (2.0, 0.25, "hinge", 0.0): [0.5, 1.9, 1.5],
    (10.0, 0.3, "hinge", 0.1): [0.0, 6.0, 4.0],
}


def pairs(chosen, rejected, lengths=(7, 3)):
    """Pairs with these averages; the sums follow from the lengths."""
    means = torch.tensor([chosen, rejected], dtype=torch.float64).T
    counts = torch.tensor([lengths] * len(chosen))
    return ResponseLogps(means * counts, counts)


def run(objective, policy):
    shape = policy.sums.shape
    return objective(policy, None, Feedback(torch.zeros(shape), torch.ones(shape, dtype=torch.bool)))


@pytest.mark.parametrize(("setting", "wanted"), PUBLISHED.items(), ids=str)
def test_values_of_the_reference_repository(setting, wanted):
    beta, ratio, kind, smoothing = setting
    objective = load_objective("simpo", beta=beta, gamma_beta_ratio=ratio, loss_type=kind, label_smoothing=smoothing)
    losses = run(objective, pairs(CHOSEN, REJECTED)).losses
    assert losses.tolist() == pytest.approx(wanted, abs=1e-9)


def test_rewards_are_beta_times_the_average_and_a_tie_is_no_win():
    rewards = run(load_objective("simpo", beta=2.0), pairs(CHOSEN, REJECTED)).rewards
    assert rewards[:, 0].tolist() == pytest.approx([-1.0, -2.0, -0.6])
    assert rewards[:, 1].tolist() == pytest.approx([-2.0, -1.6, -0.6])
    assert (rewards[:, 0] > rewards[:, 1]).tolist() == [True, False, False]


def test_equal_responses_cost_softplus_of_the_margin():
    out = run(load_objective("simpo", beta=2.0, gamma_beta_ratio=0.5), pairs([-1.0], [-1.0]))
    assert out.losses.item() == pytest.approx(math.log1p(math.exp(1.0)))


def test_length_is_divided_out():
    short = run(load_objective("simpo"), pairs([-0.4], [-0.9], lengths=(2, 2))).losses
    long = run(load_objective("simpo"), pairs([-0.4], [-0.9], lengths=(500, 3))).losses
    assert short.item() == pytest.approx(long.item())


def test_a_better_chosen_response_costs_less():
    losses = run(load_objective("simpo"), pairs([-0.9, -0.5, -0.1], [-0.5] * 3)).losses
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"beta": 0}, "'beta' must be a number above 0, found 0"),
        ({"beta": float("nan")}, "'beta' must be a number above 0, found nan"),
        ({"beta": "2"}, "'beta' must be a number above 0, found '2'"),
        ({"gamma_beta_ratio": -0.1}, "'gamma_beta_ratio' must be a number of at least 0, found -0.1"),
        ({"label_smoothing": 0.5}, "'label_smoothing' must be a number in [0, 0.5), found 0.5"),
        ({"loss_type": "ipo"}, "'loss_type' must be 'sigmoid' or 'hinge' for simpo, found 'ipo'"),
    ],
)
def test_values_out_of_range_are_refused(values, expected):
    with pytest.raises(RecipeError) as refused:
        load_objective("simpo", **values)
    assert expected in str(refused.value)


def test_description_holds_the_numbers():
    assert load_objective("simpo", beta=2.5, gamma_beta_ratio=0.55).describe() == "-log σ(2.5·(A_w - A_l - 0.55))"
