"""Values out of range are refused with the key's name; descriptions hold the numbers."""

from __future__ import annotations

import pytest

from preftune.errors import RecipeError
from preftune.objectives import load_objective, objective_defaults, objective_names

WITH_BETA = [name for name in objective_names() if "beta" in objective_defaults(name)]


@pytest.mark.parametrize("name", WITH_BETA)
def test_beta_is_a_number_above_0(name):
    for value in (0, -0.1, float("nan"), float("inf"), "0.1", True, None):
        with pytest.raises(RecipeError, match="'beta' must be a number above 0, found"):
            load_objective(name, beta=value)


REFUSED = [
    ("alphapo", {"alpha": float("inf")}, "'alpha' must be a number, found inf."),
    ("alphapo", {"gamma_beta_ratio": -1}, "'gamma_beta_ratio' must be a number of at least 0, found -1."),
    ("aot", {"loss_type": "aot"}, "'loss_type' must be 'paired' or 'unpaired', found 'aot'."),
    ("aot", {"label_smoothing": 0.5}, "'label_smoothing' must be a number in [0, 0.5), found 0.5."),
    ("cpo", {"label_smoothing": -0.1}, "'label_smoothing' must be a number in [0, 0.5), found -0.1."),
    ("cpo", {"loss_type": "robust"}, "'loss_type' must be 'sigmoid' or 'hinge' for cpo, found 'robust'."),
    ("discopop", {"tau": 0}, "'tau' must be a number in (0, 1], found 0."),
    ("discopop", {"tau": 1.5}, "'tau' must be a number in (0, 1], found 1.5."),
    ("dpo", {"label_smoothing": 0.5}, "'label_smoothing' must be a number in [0, 0.5), found 0.5."),
    ("dpo", {"loss_type": "ipo"}, "'loss_type' must be 'sigmoid', 'hinge' or 'robust' for dpo, found 'ipo'."),
    ("exo_pair", {"label_smoothing": 0}, "'label_smoothing' must be a number in (0, 0.5), found 0."),
    ("exo_pair", {"label_smoothing": 0.5}, "'label_smoothing' must be a number in (0, 0.5), found 0.5."),
    ("ipo", {"tau": 0}, "'tau' must be a number above 0, found 0."),
    ("ipo", {"normalize": "tokens"}, "'normalize' must be 'none' or 'length', found 'tokens'."),
    ("kto", {"desirable_weight": 0}, "'desirable_weight' must be a number above 0, found 0."),
    ("kto", {"undesirable_weight": -1}, "'undesirable_weight' must be a number above 0, found -1."),
    ("rdpo", {"alpha": -0.05}, "'alpha' must be a number of at least 0, found -0.05."),
    ("reward", {"center_rewards_coefficient": -1}, "'center_rewards_coefficient' must be a number of at least 0"),
    ("reward", {"margin": "1"}, "'margin' must be a number of at least 0, found '1'."),
    ("reward", {"margin_scale": -0.5}, "'margin_scale' must be a number of at least 0, found -0.5."),
    ("slic_hf", {"delta": 0}, "'delta' must be a number above 0, found 0."),
]


@pytest.mark.parametrize(("name", "keys", "expected"), REFUSED, ids=str)
def test_values_out_of_range_are_refused(name, keys, expected):
    with pytest.raises(RecipeError) as refused:
        load_objective(name, **keys)
    assert str(refused.value).startswith(expected)


DESCRIBED = [
    ("alphapo", {}, "-log σ(2.5·((e^(-0.25·A_l) - e^(-0.25·A_w))/0.25 - 0.1))"),
    ("alphapo", {"alpha": 0}, "-log σ(2.5·(A_w - A_l - 0.1))"),
    ("aot", {}, "-log σ(0.1·(u_(k) - v_(k))), u = S_w - S_l, v = R_w - R_l, sorted"),
    ("aot", {"loss_type": "unpaired"}, "-log σ(0.1·(u_(k) - v_(k))), u = r_w, v = r_l, sorted"),
    ("cpo", {"label_smoothing": 0.1}, "-0.9·log σ(0.1·(S_w - S_l)) - 0.1·log σ(-0.1·(S_w - S_l))"),
    ("cpo", {"loss_type": "hinge"}, "max(0, 1 - 0.1·(S_w - S_l))"),
    ("dpo", {}, "-log σ(0.1·(r_w - r_l))"),
    ("dpo", {"loss_type": "hinge"}, "max(0, 1 - 0.1·(r_w - r_l))"),
    (
        "dpo",
        {"loss_type": "robust", "label_smoothing": 0.1},
        "[-0.9·log σ(0.1·(r_w - r_l)) + 0.1·log σ(-0.1·(r_w - r_l))] / 0.8",
    ),
    ("ipo", {}, "(r_w - r_l - 5)²"),
    ("ipo", {"normalize": "length"}, "(r_w/|y_w| - r_l/|y_l| - 5)²"),
    ("orpo", {"beta": 0.5}, "-A_w - 0.5·log σ(log odds_w - log odds_l)"),
    ("rdpo", {}, "-log σ(0.1·(r_w - r_l) + 0.05·(|y_w| - |y_l|))"),
    ("reward", {}, "-log σ(s_i - s_j)"),
    (
        "reward",
        {"margin": 1, "margin_scale": 2, "center_rewards_coefficient": 0.01},
        "-log σ(s_i - s_j - 1 - 2·(score_i - score_j)) + 0.01·(s_i + s_j)²",
    ),
    ("slic_hf", {}, "max(0, 1 - S_w + S_l)"),
    ("sppo_hard", {}, "(r_w - 5)² + (r_l + 5)²"),
]


@pytest.mark.parametrize(("name", "keys", "wanted"), DESCRIBED, ids=str)
def test_descriptions_hold_the_numbers(name, keys, wanted):
    assert load_objective(name, **keys).describe() == wanted
