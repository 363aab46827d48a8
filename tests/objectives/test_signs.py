"""Which way each pair loss pulls."""

from __future__ import annotations

from math import log

import pytest
import torch

from preftune.objectives import load_objective
from tests.objectives.inputs import feedback, logps, one_pair

FALLING = [
    ("alphapo", {}),
    ("alphapo", {"alpha": -0.5}),
    ("aot", {}),
    ("aot", {"loss_type": "unpaired"}),
    ("apo_zero", {}),
    ("bco_pair", {}),
    ("cpo", {}),
    ("cpo", {"loss_type": "hinge", "beta": 0.01}),
    ("dpo", {}),
    ("dpo", {"loss_type": "hinge"}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    ("dpo_norm", {}),
    ("mixture", {}),
    ("orpo", {}),
    ("rdpo", {}),
    ("simpo", {}),
    ("slic_hf", {"delta": 10.0}),
]


@pytest.mark.parametrize(("name", "keys"), FALLING, ids=str)
def test_loss_falls_as_the_chosen_logprob_rises_and_rises_with_the_rejected_one(name, keys):
    chosen = [one_pair(name, keys, (s, -10.0), (4, 5), (-9.0, -9.0)).losses.item() for s in (-14, -11, -8, -5)]
    rejected = [one_pair(name, keys, (-10.0, s), (4, 5), (-9.0, -9.0)).losses.item() for s in (-14, -11, -8, -5)]
    assert chosen == sorted(chosen, reverse=True) and len(set(chosen)) == 4
    assert rejected == sorted(rejected) and len(set(rejected)) == 4


def slopes(name: str, keys: dict, ratios: tuple[float, float]) -> tuple[float, float]:
    """Derivatives of the loss by the chosen and the rejected log-prob, where these are the log-ratios."""
    policy = logps((-50 + ratios[0], -60 + ratios[1]))
    policy.sums.requires_grad_()
    out = load_objective(name, **keys)(policy, logps((-50.0, -60.0)), feedback((0.0, 0.0), baseline=0.0))
    (gradient,) = torch.autograd.grad(out.losses.sum(), policy.sums)
    return tuple(gradient[0].tolist())


# Losses with a lowest point: name, keys, log-ratios (chosen, rejected) there.
LOWEST = [
    ("ipo", {"tau": 0.25}, (1.0, -1.0)),  # r_w - r_l = 1/(2·0.25)
    ("sppo_hard", {"beta": 0.25}, (2.0, -2.0)),  # ±0.5/0.25
    ("exo_pair", {"beta": 1.0, "label_smoothing": 0.1}, (log(9), 0.0)),  # σ(z) = 0.9
]


@pytest.mark.parametrize(("name", "keys", "lowest"), LOWEST, ids=str)
def test_squared_and_divergence_losses_pull_to_their_target_from_both_sides(name, keys, lowest):
    wanted, unwanted = lowest
    assert slopes(name, keys, lowest) == pytest.approx((0.0, 0.0), abs=1e-9)
    below, above = slopes(name, keys, (wanted - 0.5, unwanted)), slopes(name, keys, (wanted + 0.5, unwanted))
    assert below[0] < 0 < above[0]


def test_smoothed_dpo_stops_at_the_smoothed_label():
    assert slopes("dpo", {"beta": 1.0, "label_smoothing": 0.1}, (log(9), 0.0)) == pytest.approx((0, 0), abs=1e-9)


def test_nca_holds_the_chosen_reward_at_log_2_and_lowers_the_rejected_one():
    assert slopes("nca_pair", {"beta": 1.0}, (log(2), 0.0)) == pytest.approx((0.0, 0.25))  # σ(r_w) = 2/3
    assert slopes("nca_pair", {"beta": 1.0}, (0.0, 0.0))[0] < 0


def test_apo_down_lowers_the_chosen_logprob_once_it_is_ahead_and_the_rejected_one_more():
    chosen, rejected = slopes("apo_down", {}, (1.0, -3.0))
    assert 0 < chosen < rejected
    assert slopes("apo_down", {"beta": 1.0}, (0.0, 0.0)) == pytest.approx((0.0, 0.25))


def test_discopop_has_its_published_local_minimum():
    """At rho = -2.3714 with beta 0.05, where the paper puts it; it rises from there past the start."""
    for ratio, sign in ((-2.45, -1), (-2.29, 1), (0.0, 1), (1.3, 1), (1.6, -1)):
        slope, _ = slopes("discopop", {"beta": 0.05}, (ratio, 0.0))
        assert slope * sign > 0, ratio


def test_rdpo_sign():
    """With equal log-ratios a longer chosen answer costs less than log 2: its length already explains the choice."""
    reference = (-6.0, -10.0)
    longer = one_pair("rdpo", {}, (-6.0, -10.0), (9, 5), reference).losses.item()
    shorter = one_pair("rdpo", {}, (-6.0, -10.0), (5, 9), reference).losses.item()
    assert longer < log(2) < shorter
    assert one_pair("rdpo", {"alpha": 0}, (-6.0, -10.0), (9, 5), reference).losses.item() == pytest.approx(log(2))


def test_saturated_alphapo_no_longer_moves():
    """-alpha·A = 0.25·130 is above 30."""
    policy = logps((-130.0, -1.0))
    policy.sums.requires_grad_()
    load_objective("alphapo")(policy, None, feedback((0.0, 0.0))).losses.sum().backward()
    assert policy.sums.grad[0, 0] == 0 < policy.sums.grad[0, 1]
