"""What is known of a step before its gradients: references, KTO's probes, objectives that look at the whole step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from preftune.data.plan import Cut
from preftune.model.policy import to_policy
from preftune.model.reference import FrozenModel
from preftune.objectives import load_objective
from preftune.train.loader import StepSource
from preftune.train.passes import RunningMean, prepare_step
from preftune.train.step import Packing, StepLoss, build_step, run_step
from preftune.types import Origin, TokenizedGroup
from tests.small import build_groups, build_model, gradients, lengths_of, slow_logps, worst_gradient_gap

CUTS = [Cut(max_groups=1), Cut(max_groups=3), Cut(max_tokens=70), Cut()]


def models(dtype=torch.float64):
    return build_model("llama", dtype), build_model("llama", dtype, seed=5)


def labelled(count, seed=0):
    """Rows of one response with a label; two thirds are desirable."""
    groups = build_groups(count, responses=1, seed=seed)
    return [replace(group, scores=(float(row % 3 > 0),)) for row, group in enumerate(groups)]


def step_of(groups, cut, objective, **source):
    probes = load_objective(objective).layout == "unpaired"
    return StepSource(groups, len(groups), cut, seed=None, probes=probes, **source)[0, 0]


def run(groups, cut, loss, joints=True, road="packed"):
    model, other = models()
    model = to_policy(model, road)
    packing = Packing(joints=joints, padded=road == "padded")
    probes = loss.objective.layout == "unpaired"
    step = StepSource(groups, len(groups), cut, seed=None, probes=probes, packing=packing)[0, 0]
    total = run_step(model, prepare_step(model, step, loss, reference=FrozenModel(to_policy(other, road))), loss)
    return gradients(model), total.item()


def oracle(groups, formula):
    """Gradient and loss of `formula(policy sums, reference sums)` over log-probs made one sequence at a time."""
    model, other = models()
    with torch.no_grad():
        reference = slow_logps(other, groups)
    loss = formula(slow_logps(model, groups), reference)
    loss.backward()
    return gradients(model), loss.item()


@pytest.mark.parametrize("road", ["packed", "padded"])
def test_dpo_is_its_formula_under_a_live_reference(road):
    groups = build_groups(7)
    wanted, loss = oracle(groups, lambda p, r: F.softplus(-0.1 * ((p - r) @ p.new_tensor([1.0, -1.0]))).mean())
    for cut in CUTS:
        found, total = run(groups, cut, StepLoss(load_objective("dpo")), road=road)
        assert total == pytest.approx(loss, rel=1e-6)
        assert worst_gradient_gap(found, wanted) <= 1e-6


def kto_formula(groups, weights=(1.0, 1.0)):
    """Equations 7 and 8 of arXiv:2402.01306, with the next row's response as the probe."""
    desirable = torch.tensor([group.scores[0] > 0 for group in groups])
    limit = longest(groups)
    probes = [
        TokenizedGroup(group.prompt_ids, [other.response_ids[0][: limit - len(group.prompt_ids)]], group.origin)
        for group, other in zip(groups, groups[1:] + groups[:1], strict=True)
    ]

    def formula(policy, reference):
        model, other = models()
        with torch.no_grad():
            z = (slow_logps(model, probes) - slow_logps(other, probes)).mean().clamp(min=0)
        r = 0.1 * (policy - reference)[:, 0]
        good = weights[0] * (1 - torch.sigmoid(r - 0.1 * z))
        bad = weights[1] * (1 - torch.sigmoid(0.1 * z - r))
        return torch.where(desirable, good, bad).mean()

    return formula


def longest(groups):
    return max(len(group.prompt_ids) + len(group.response_ids[0]) for group in groups)


@pytest.mark.parametrize("road", ["packed", "padded"])
def test_kto_takes_its_reference_point_over_the_whole_step(road):
    groups = labelled(8)
    wanted, loss = oracle(groups, kto_formula(groups))
    for cut in CUTS:
        found, total = run(groups, cut, StepLoss(load_objective("kto")), road=road)
        assert total == pytest.approx(loss, rel=1e-6)
        assert worst_gradient_gap(found, wanted) <= 1e-6


def test_kto_weights_its_classes():
    groups = labelled(6)
    wanted, loss = oracle(groups, kto_formula(groups, (1.3, 0.7)))
    loss_of = StepLoss(load_objective("kto", desirable_weight=1.3, undesirable_weight=0.7))
    found, total = run(groups, Cut(max_groups=2), loss_of)
    assert total == pytest.approx(loss, rel=1e-6)
    assert worst_gradient_gap(found, wanted) <= 1e-6


@pytest.mark.parametrize("rows", [9, 8, 5])  # steps of 4: the last has 1, 4 and 1 rows
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_row_is_its_own_probe_nor_one_with_its_prompt(rows, ranks):
    groups = labelled(rows)
    groups[2] = replace(groups[2], prompt_ids=groups[1].prompt_ids)
    seen = []
    for rank in range(ranks):
        source = StepSource(groups, 4, Cut(), seed=3, rank=rank, ranks=ranks, probes=True)
        for step in range(source.steps):
            built = source[0, step]
            for joint, batch in zip(built.joints, built.micro_batches, strict=True):
                assert joint.lengths.shape == (len(batch.origins), 2)
                for probe_length, origin, weight in zip(
                    joint.lengths[:, 1].tolist(), batch.origins, batch.weights.tolist(), strict=True
                ):
                    if weight:
                        seen.append(origin.row)
                    assert probe_length > 0
    assert sorted(seen) == list(range(1, rows + 1))
    source = StepSource(groups, 4, Cut(), seed=3, probes=True)
    answers = {row: tuple(group.response_ids[0]) for row, group in enumerate(groups)}
    for epoch in range(3):
        for row, joint in enumerate(source.joint_groups(epoch)):
            probe = joint.response_ids[1]
            givers = [r for r, ids in answers.items() if ids[: len(probe)] == tuple(probe)]
            assert all(groups[giver].prompt_ids != joint.prompt_ids for giver in givers), (epoch, row)


def test_the_probe_is_the_same_on_every_rank():
    groups = labelled(8)
    lone = StepSource(groups, 8, Cut(), seed=1, probes=True)[0, 0]
    for rank in range(2):
        part = StepSource(groups, 8, Cut(), seed=1, rank=rank, ranks=2, probes=True)[0, 0]
        rows = {o.row: n for n, o in enumerate(lone.probes[0].origins)}
        for n, origin in enumerate(part.probes[0].origins):
            assert part.probes[0].lengths[n, 0] == lone.probes[0].lengths[rows[origin.row], 0]


def test_a_probe_is_no_longer_than_the_data():
    groups = labelled(6)
    groups[3] = TokenizedGroup(list(range(3, 43)), [[5, 6]], Origin("small", "train", 4), (1.0,))
    limit = longest(groups)
    for joint in StepSource(groups, 6, Cut(), seed=None, probes=True).joint_groups(0):
        assert len(joint.prompt_ids) + len(joint.response_ids[1]) <= limit


def test_an_objective_over_the_whole_step_does_not_depend_on_the_cut():
    groups = build_groups(7)

    def formula(policy, reference):  # arXiv:2406.05882: quantiles of the log-ratios are matched, not pairs
        ratio = policy - reference
        chosen, rejected = ratio[:, 0].sort().values, ratio[:, 1].sort().values
        return F.softplus(-0.1 * (chosen - rejected)).mean()

    wanted, loss = oracle(groups, formula)
    for cut in CUTS:
        found, total = run(groups, cut, StepLoss(load_objective("aot", loss_type="unpaired")))
        assert total == pytest.approx(loss, rel=1e-6)
        assert worst_gradient_gap(found, wanted) <= 1e-6


def test_an_sft_term_goes_beside_an_objective_over_the_whole_step():
    groups = build_groups(5)
    lengths = lengths_of(groups)

    def formula(policy, reference):
        ratio = policy - reference
        matched = ratio[:, 0].sort().values - ratio[:, 1].sort().values
        return F.softplus(-0.1 * matched).mean() - 0.5 * policy[:, 0].sum() / lengths[:, 0].sum()

    wanted, loss = oracle(groups, formula)
    found, total = run(groups, Cut(max_groups=2), StepLoss(load_objective("aot", loss_type="unpaired"), 0.5))
    assert total == pytest.approx(loss, rel=1e-6)
    assert worst_gradient_gap(found, wanted) <= 1e-6


def test_the_running_mean_counts_every_response_once():
    groups = build_groups(6)
    model, other = (to_policy(m, "packed") for m in models())
    loss = StepLoss(load_objective("bco_pair"))
    step = prepare_step(model, build_step(groups, Cut(max_groups=2)), loss, reference=FrozenModel(other))
    running = RunningMean()
    assert running.mean == 0
    rewards = []
    for batch in step.micro_batches:
        with torch.no_grad():
            output = loss.objective(model(batch=batch), batch.reference, batch.feedback)
        running.add(output, batch)
        rewards.append(output.rewards)
    running.close_step(lambda values: values)
    assert running.mean.item() == pytest.approx(torch.cat(rewards).mean().item(), rel=1e-6)
    again = RunningMean.from_json(running.to_json())
    assert torch.equal(again.mean, running.mean)
    assert copy.copy(again).pending == []
