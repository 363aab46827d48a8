from __future__ import annotations

import pytest
import torch

from preftune.errors import RecipeError
from preftune.objectives import load_objective, objective_class, objective_defaults
from preftune.objectives.base import Baseline, Per, Reads
from preftune.types import Layout
from tests.objectives.inputs import MPO, build_inputs


def build(**mixture):
    return load_objective("mixture", mixture=mixture)


def test_losses_are_the_weighted_sum_and_each_part_is_logged():
    objective = build(dpo=0.8, ipo={"weight": 0.5, "tau": 0.3})
    inputs = build_inputs(objective)
    dpo, ipo = load_objective("dpo")(*inputs), load_objective("ipo", tau=0.3)(*inputs)
    out = objective(*inputs)
    assert torch.allclose(out.losses, 0.8 * dpo.losses + 0.5 * ipo.losses)
    assert torch.allclose(out.rewards, (0.8 * dpo.rewards + 0.5 * ipo.rewards) / 1.3)
    assert torch.equal(out.terms["losses/dpo"], dpo.losses) and torch.equal(out.terms["losses/ipo"], ipo.losses)


def test_the_terms_of_a_part_are_logged_too():
    objective = build(orpo=1, simpo=1)
    out = objective(*build_inputs(objective))
    assert set(out.terms) == {"losses/orpo", "losses/simpo", "log_odds"}
    assert not any(term.requires_grad for term in out.terms.values())


def test_rewards_are_those_that_a_running_baseline_is_the_mean_of():
    objective = build(simpo=3.0, bco_pair=1.0)
    inputs = build_inputs(objective)
    assert torch.allclose(objective(*inputs).rewards, load_objective("bco_pair")(*inputs).rewards)


def test_the_default_is_mpo_without_its_sft_term():
    assert objective_defaults("mixture") == {"mixture": MPO}
    objective = load_objective("mixture")
    assert objective.published_sft_weight == 0
    assert objective.describe() == "0.8·[-log σ(0.1·(r_w - r_l))] + 0.2·[-log σ(0.1·r_w - δ) - log σ(δ - 0.1·r_l)]"


def test_defaults_are_not_shared():
    objective_defaults("mixture")["mixture"]["dpo"] = 5
    assert load_objective("mixture").mixture == MPO


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        (MPO, (Layout.PAIRED, Reads.LOGPS, True, True, Baseline.RUNNING)),
        ({"simpo": 1, "cpo": 2}, (Layout.PAIRED, Reads.LOGPS, False, True, Baseline.NONE)),
        ({"simpo": 1, "aot": 2}, (Layout.PAIRED, Reads.LOGPS, True, False, Baseline.NONE)),
        ({"rrhf": 1}, (Layout.RANKED, Reads.LOGPS, False, True, Baseline.NONE)),
        ({"reward": 1}, (Layout.RANKED, Reads.SCORES, False, True, Baseline.NONE)),
        ({"kto": 1}, (Layout.UNPAIRED, Reads.LOGPS, True, True, Baseline.PROBES)),
    ],
    ids=str,
)
def test_what_the_step_must_know_comes_from_the_parts(mixture, wanted):
    made = build(**mixture)
    assert (made.layout, made.reads, made.needs_reference, made.group_local, made.baseline) == wanted
    assert made.per == Per.GROUP


def test_the_class_speaks_for_the_default_mixture():
    kind, made = objective_class("mixture"), load_objective("mixture")
    for attribute in ("layout", "per", "reads", "needs_reference", "group_local", "baseline"):
        assert getattr(kind, attribute) == getattr(made, attribute)


def test_without_a_reference_none_is_read():
    objective = build(simpo=1, orpo=0.5)
    policy, _, feedback = build_inputs(objective)
    assert objective(policy, None, feedback).losses.isfinite().all()


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ({}, "'mixture' must be objective names with their weights, found {}"),
        (["dpo"], "'mixture' must be objective names with their weights, found ['dpo']"),
        ({"dpo": 0}, "'mixture' needs a weight above 0 for dpo, found 0."),
        ({"dpo": -1.0}, "'mixture' needs a weight above 0 for dpo, found -1.0."),
        ({"dpo": True}, "'mixture' needs a weight above 0 for dpo, found True."),
        ({"dpo": {"beta": 0.2}}, "'mixture' needs a weight above 0 for dpo, found None."),
        ({"dqo": 1}, "'mixture' dqo: 'objective' 'dqo' is not known; did you mean 'dpo'?"),
        ({"dpo": {"weight": 1, "bata": 2}}, "'mixture' dpo: 'bata' is not a key of dpo; did you mean 'beta'?"),
        ({"dpo": {"weight": 1, 3: 2}}, "'mixture' dpo: '3' is not a key of dpo"),
        ({"dpo": {"weight": 1, "beta": 0}}, "'mixture' dpo: 'beta' must be a number above 0, found 0."),
        ({"mixture": {"dpo": 1}}, "'mixture' cannot hold a mixture."),
        ({"dpo": 1, "sft": 1}, "'mixture' cannot hold sft. Leave it out, and set sft_weight instead."),
        ({"dpo": 1, "kto": 1}, "'mixture' needs objectives of one layout: dpo has paired, kto has unpaired."),
        ({"rrhf": 1, "reward": 1}, "'mixture' needs objectives of one reads: rrhf has logps, reward has scores."),
    ],
    ids=str,
)
def test_bad_mixtures_are_refused(mixture, expected):
    with pytest.raises(RecipeError) as refused:
        load_objective("mixture", mixture=mixture)
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)
