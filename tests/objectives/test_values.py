"""Values worked out by hand, one pair each."""

from __future__ import annotations

from math import log

import pytest

from preftune.objectives import load_objective
from tests.objectives.inputs import feedback, logps, one_pair

LOG2, LOG3 = log(2), log(3)
HALF = 0.474076984180  # -log σ(0.5) = log(1 + e^-0.5)

# Log-probs -6 and -10 in 3 and 5 tokens, reference -8 and -7: r = 2 and -3, r/n = 2/3 and -3/5, A = -2 and -2.
PLAIN = ((-6.0, -10.0), (3, 5), (-8.0, -7.0))
# r = log 3 and -log 3, so that at beta 1 σ(r_w) = 3/4, σ(r_l) = 1/4, σ(r_w - r_l) = 9/10.
ODDS = ((-6.0, -10.0), (3, 5), (-6.0 - LOG3, -10.0 + LOG3))
# The policy is the reference.
START = ((-6.0, -10.0), (3, 5), (-6.0, -10.0))
# A = -log 2 and -log 4: average probabilities 1/2 and 1/4, odds 1 and 1/3.
HALVES = ((-3 * LOG2, -5 * log(4)), (3, 5), (0.0, 0.0))

VALUES = [
    ("dpo", {}, PLAIN, HALF),  # z = 0.1·(2 + 3) = 0.5
    ("dpo", {"label_smoothing": 0.1}, PLAIN, HALF + 0.05),  # -log σ(-z) = -log σ(z) + z
    ("dpo", {"label_smoothing": 0.1, "loss_type": "robust"}, PLAIN, HALF - 0.05 / 0.8),
    ("dpo", {"loss_type": "hinge"}, PLAIN, 0.5),  # 1 - z
    ("dpo", {"loss_type": "hinge", "beta": 0.3}, PLAIN, 0.0),  # z = 1.5
    ("dpo", {}, START, LOG2),
    ("dpo_norm", {"beta": 15 / 38}, PLAIN, HALF),  # 2/3 + 3/5 = 19/15
    ("ipo", {}, PLAIN, 0.0),  # r_w - r_l = 5 = 1/(2·0.1)
    ("ipo", {"tau": 0.5}, PLAIN, 16.0),  # (5 - 1)²
    ("ipo", {"tau": 0.5, "normalize": "length"}, PLAIN, 16 / 225),  # (19/15 - 1)²
    ("cpo", {"beta": 0.125}, PLAIN, HALF),  # 0.125·(10 - 6)
    ("cpo", {"beta": 0.125, "label_smoothing": 0.1}, PLAIN, HALF + 0.05),
    ("cpo", {"beta": 0.125, "loss_type": "hinge"}, PLAIN, 0.5),
    ("orpo", {}, PLAIN, 2 + 0.1 * LOG2),  # equal averages: log odds 0
    ("orpo", {"beta": 2.0}, HALVES, LOG2 + 2 * log(4 / 3)),  # odds ratio 3, σ(log 3) = 3/4
    ("rdpo", {"beta": 0.12}, PLAIN, HALF),  # 0.12·5 + 0.05·(3 - 5)
    ("slic_hf", {}, PLAIN, 0.0),  # 1 + 6 - 10 < 0
    ("slic_hf", {"delta": 5.0}, PLAIN, 1.0),
    ("alphapo", {"alpha": 1.0, "beta": 1 / 3, "gamma_beta_ratio": 0.5}, HALVES, HALF),  # (4 - 2 - 0.5)/3
    ("alphapo", {"alpha": -1.0, "beta": 2.0, "gamma_beta_ratio": 0.0}, HALVES, HALF),  # 2·(1/2 - 1/4)
    ("alphapo", {"alpha": 0.0, "beta": 1 / LOG2, "gamma_beta_ratio": LOG2 / 2}, HALVES, HALF),  # SimPO
    ("exo_pair", {"beta": LOG3 / 5, "label_smoothing": 0.25}, PLAIN, 0.0),  # q = 3/4 is what is wanted
    ("exo_pair", {"label_smoothing": 0.25}, START, log(4 / 3) / 2),  # ½·log(2/3) + ½·log 2
    ("nca_pair", {}, START, 2 * LOG2),
    ("nca_pair", {"beta": 1.0}, ODDS, 1.5 * log(4 / 3) + 0.5 * log(4)),  # σ(-r_w) = 1/4, σ(-r_l) = 3/4
    ("bco_pair", {"beta": 1.0}, ODDS, 2 * log(4 / 3)),
    ("bco_pair", {"beta": 1.0}, (*ODDS, LOG3), LOG2 + log(10 / 9)),  # shift log 3: σ(0) and σ(2·log 3)
    ("sppo_hard", {}, PLAIN, 13.0),  # (2 - 5)² + (-3 + 5)²
    ("apo_zero", {"beta": 1.0}, ODDS, 0.5),  # 1/4 + 1/4
    ("apo_down", {"beta": 1.0}, ODDS, 0.85),  # 3/4 + 1 - 9/10
    ("discopop", {}, START, 0.5 * LOG2 + 0.5),  # m = 1/2
    ("discopop", {"beta": LOG3 / 5, "tau": 1.0}, PLAIN, 0.25 * log(4 / 3) + 0.75 / 3),  # m = 3/4, e^-z = 1/3
    ("aot", {}, PLAIN, HALF),  # one pair alone is DPO
    (
        "mixture",
        {"mixture": {"dpo": {"weight": 0.8, "beta": 1}, "bco_pair": {"weight": 0.2, "beta": 1}}},
        ODDS,
        0.8 * log(10 / 9) + 0.2 * 2 * log(4 / 3),
    ),
]


@pytest.mark.parametrize(("name", "keys", "pair", "wanted"), VALUES, ids=str)
def test_losses_are_those_worked_out_by_hand(name, keys, pair, wanted):
    assert one_pair(name, keys, *pair).losses.item() == pytest.approx(wanted, abs=1e-11)


# The logged reward of the chosen response of PLAIN: S = -6, A = -2, r = 2, r/n = 2/3.
REWARDS = [
    ("alphapo", {"beta": 2.5, "alpha": -1.0}, 2.5 * (0.1353352832366127 - 1)),  # e^-2
    ("aot", {}, 0.2),
    ("apo_down", {}, 0.2),
    ("apo_zero", {}, 0.2),
    ("bco_pair", {}, 0.2),
    ("cpo", {}, -0.6),
    ("discopop", {}, 0.2),
    ("dpo", {}, 0.2),
    ("dpo_norm", {}, 5 * 2 / 3),
    ("exo_pair", {}, 0.2),
    ("ipo", {}, 0.2),
    ("ipo", {"normalize": "length"}, 0.2 / 3),
    ("mixture", {}, 0.2),
    ("nca_pair", {}, 0.2),
    ("orpo", {}, -0.2),
    ("rdpo", {}, 0.2),
    ("simpo", {}, -4.0),
    ("slic_hf", {}, -6.0),
    ("sppo_hard", {}, 0.2),
]


@pytest.mark.parametrize(("name", "keys", "wanted"), REWARDS, ids=str)
def test_logged_rewards_are_those_of_the_docstring(name, keys, wanted):
    assert one_pair(name, keys, *PLAIN, 0.3).rewards[0, 0].item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "weight", "normalization"),
    [
        ("cpo", 1.0, "token"),
        ("slic_hf", 0.1, "sum"),
        ("rrhf", 1.0, "sum"),
        ("dpo", 0.0, "token"),
        ("orpo", 0.0, "token"),
    ],
)
def test_the_sft_term_of_a_paper_is_announced_and_not_part_of_the_loss(name, weight, normalization):
    objective = load_objective(name)
    assert (objective.published_sft_weight, objective.published_sft_normalization) == (weight, normalization)


def test_orpo_logs_the_log_odds_ratio():
    assert one_pair("orpo", {}, *HALVES).terms["log_odds"].item() == pytest.approx(LOG3)


def test_bco_has_no_shift_before_there_are_rewards():
    objective = load_objective("bco_pair", beta=1.0)
    sums, lengths, reference = ODDS
    out = objective(logps(sums, lengths=(lengths,)), logps(reference), feedback((0.0, 0.0)))
    assert out.losses.item() == pytest.approx(2 * log(4 / 3))
