"""A step means the same however it is cut: gradients, loss and metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from preftune.data.pack import pack
from preftune.data.plan import Cut, epoch_order, plan_step, uneven_share
from preftune.errors import DataError, RecipeError
from preftune.model.policy import to_policy
from preftune.objectives import load_objective
from preftune.train.metrics import MetricSums
from preftune.train.passes import check_row_weights
from preftune.train.step import Packing, StepLoss, build_step, micro_batch_loss, run_step, step_counts
from preftune.types import ResponseLogps
from tests.small import build_group, build_groups, build_model, gradients, lengths_of, slow_logps, worst_gradient_gap

CUTS = {
    "8x1": Cut(max_groups=1),
    "4x2": Cut(max_groups=2),
    "1x8": Cut(max_groups=8),
    "60 tokens": Cut(max_tokens=60),
    "90 tokens, 3 groups": Cut(max_tokens=90, max_groups=3),
}
LOSSES = {
    "simpo": StepLoss(load_objective("simpo")),
    "simpo + token mean": StepLoss(load_objective("simpo"), 0.5, "token"),
    "simpo + sequence mean": StepLoss(load_objective("simpo"), 0.5, "sequence"),
    "simpo + sum": StepLoss(load_objective("simpo"), 0.5, "sum"),
    "sft": StepLoss(load_objective("sft")),
}


def run(cut, loss, groups, share_prompt=True):
    """Gradient, loss and metrics of one step."""
    model = to_policy(build_model("llama"), "packed")
    step = build_step(groups, cut, packing=Packing(share_prompt=share_prompt))
    total = run_step(model, step, loss).item()
    metrics = MetricSums()
    with torch.no_grad():
        for batch in step.micro_batches:
            _, policy = micro_batch_loss(model, batch, loss, step_counts(step))
            metrics.add(batch, policy, loss)
    return gradients(model), total, metrics.drain(lambda sums: sums)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_cut_changes_nothing(name, cut):
    groups = build_groups(8, responses=1 if name == "sft" else 2, longest=40)
    wanted, wanted_loss, wanted_metrics = run(Cut(), LOSSES[name], groups)
    found, loss, metrics = run(CUTS[cut], LOSSES[name], groups)
    assert worst_gradient_gap(found, wanted) <= 1e-6
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert metrics == pytest.approx(wanted_metrics, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_step_is_the_formula(name):
    """Loss and gradient against the definition, written out over the slow log-probs."""
    loss = LOSSES[name]
    groups = build_groups(6, responses=1 if name == "sft" else 2)
    model = build_model("llama")
    sums, lengths = slow_logps(model, groups), lengths_of(groups)
    first, first_lengths = sums[:, 0], lengths[:, 0]
    if name == "sft":
        wanted = -first.sum() / first_lengths.sum()
    else:
        means = sums / lengths
        wanted = -torch.nn.functional.logsigmoid(2 * (means[:, 0] - means[:, 1] - 0.5)).mean()
        term = {
            "simpo": 0.0,
            "simpo + token mean": -0.5 * first.sum() / first_lengths.sum(),
            "simpo + sequence mean": -0.5 * (first / first_lengths).mean(),
            "simpo + sum": -0.5 * first.mean(),
        }
        wanted = wanted + term[name]
    wanted.backward()
    found, total, metrics = run(Cut(max_groups=2), loss, groups)
    assert total == pytest.approx(wanted.item(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert metrics["nll"] == pytest.approx((-first.sum() / first_lengths.sum()).item(), rel=1e-5)
    assert worst_gradient_gap(found, gradients(model)) <= 1e-4


def test_metrics_are_the_means_over_the_pairs():
    groups = build_groups(5)
    _, _, metrics = run(Cut(max_groups=2), LOSSES["simpo"], groups)
    lengths = lengths_of(groups)
    sums = slow_logps(build_model("llama"), groups)
    rewards = 2.0 * sums / lengths
    assert metrics["rewards/margins"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item(), rel=1e-4)
    assert metrics["rewards/accuracies"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).float().mean().item())
    assert metrics["logps/chosen"] == pytest.approx(sums[:, 0].mean().item(), rel=1e-5)
    assert metrics["lengths/rejected"] == pytest.approx(lengths[:, 1].float().mean().item())


def test_a_filler_counts_for_nothing():
    groups = build_groups(3)
    model = to_policy(build_model("llama"), "packed")
    loss = LOSSES["simpo + token mean"]
    batch = pack(groups[:1], weights=[0.0])
    counts = step_counts(build_step(groups, Cut()))
    total, policy = micro_batch_loss(model, batch, loss, counts)
    total.backward()
    assert total.item() == 0.0
    assert all(not p.grad.any() for p in model.parameters())
    metrics = MetricSums()
    metrics.add(batch, policy, loss)
    assert set(metrics.drain(lambda sums: sums).values()) == {0.0}


def test_sft_weight_needs_more_than_one_response():
    with pytest.raises(RecipeError, match=r"'sft_weight' 0\.1 needs pairs or ranked responses; SFT has neither"):
        StepLoss(load_objective("sft"), 0.1)
    with pytest.raises(RecipeError, match="'sft_normalization' must be one of token, sequence, sum"):
        StepLoss(load_objective("simpo"), 0.1, "mean")
    with pytest.raises(RecipeError, match="'sft_weight' must be at least 0"):
        StepLoss(load_objective("simpo"), -0.1)


class TestPlan:
    def test_every_group_is_in_one_micro_batch_within_the_limits(self):
        costs = [7, 3, 9, 1, 4, 4, 8, 2, 12]
        (plan,) = plan_step(costs, Cut(max_tokens=10, max_groups=3))
        assert sorted(index for batch in plan for index in batch.groups) == list(range(9))
        for batch in plan:
            tokens = sum(costs[index] for index in batch.groups)
            assert len(batch.groups) <= 3
            assert tokens <= 10 or batch.groups == (8,)  # longer than the budget: alone

    def test_ranks_get_the_same_number_and_even_loads(self):
        costs = [1 + (13 * i) % 40 for i in range(97)]
        plan = plan_step(costs, Cut(max_tokens=100), ranks=4)
        assert len({len(batches) for batches in plan}) == 1
        real = [index for batches in plan for batch in batches if not batch.filler for index in batch.groups]
        assert sorted(real) == list(range(97))
        loads = [sum(costs[i] for b in batches if not b.filler for i in b.groups) for batches in plan]
        assert max(loads) / (sum(loads) / 4) < 1.05

    def test_the_uneven_share_is_what_the_fullest_rank_has_more_than_the_mean(self):
        assert uneven_share([[4, 3, 3]], ranks=2) == pytest.approx(6 / 5 - 1)  # 4 and 3 + 3
        assert uneven_share([[5, 5], [4, 3, 3]], ranks=2) == pytest.approx(11 / 10 - 1)
        assert uneven_share([[7, 1]], ranks=1) == 0

    def test_a_rank_without_groups_gets_a_filler(self):
        plan = plan_step([5], Cut(), ranks=2)
        assert [[batch.filler for batch in batches] for batches in plan] == [[False], [True]]

    def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch(self):
        assert epoch_order(50, seed=3, epoch=1) == epoch_order(50, seed=3, epoch=1)
        assert epoch_order(50, seed=3, epoch=1) != epoch_order(50, seed=3, epoch=2)
        assert epoch_order(50, seed=3, epoch=1) != epoch_order(50, seed=4, epoch=1)
        assert sorted(epoch_order(50, seed=3, epoch=1)) == list(range(50))


class TestPack:
    def test_the_layout_by_hand(self):
        group = build_group(2, 3, 2)
        group = type(group)([10, 11], [[20, 21, 22], [20, 31]], group.origin)
        batch = pack([group])
        # shared: prompt and the common 20; branches without their last token: [21] and []
        assert batch.input_ids.tolist() == [[10, 11, 20, 21]]
        assert batch.position_ids.tolist() == [[0, 1, 2, 3]]
        assert batch.trees == ((0, 3, (1, 0)),)
        assert batch.targets.tolist() == [20, 21, 22, 20, 31]
        assert batch.scored.tolist() == [1, 2, 3, 1, 2]
        assert batch.owner.tolist() == [0, 0, 0, 1, 1]
        assert batch.rows_per_group == (5,)
        assert batch.tokens == group.packed_length() == 4

    def test_repeated_prompts_by_hand(self):
        group = type(build_group(1, 1))([10, 11], [[20, 21], [30]], build_group(1, 1).origin)
        batch = pack([group], share_prompt=False)
        assert batch.input_ids.tolist() == [[10, 11, 20, 10, 11]]
        assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
        assert batch.scored.tolist() == [1, 2, 4]
        assert [tree.shared for tree in batch.trees] == [3, 2]


@pytest.mark.parametrize("cut", [Cut(), Cut(max_groups=1)], ids=["whole", "cut"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_a_weight_multiplies_the_loss_of_its_row_and_leaves_the_divisors(cut, sft_weight):
    weights = (0.5, 0.0, 3.0, 1.0)
    groups = [replace(group, weight=w) for group, w in zip(build_groups(4), weights, strict=True)]
    loss = StepLoss(load_objective("simpo"), sft_weight)
    model = to_policy(build_model())
    run_step(model, build_step(groups, cut), loss)

    oracle = build_model()
    sums, lengths = slow_logps(oracle, groups), lengths_of(groups)
    margins = (sums / lengths)[:, 0] - (sums / lengths)[:, 1] - 0.5
    by_row = torch.tensor(weights)
    wanted = (by_row * -torch.nn.functional.logsigmoid(2.0 * margins)).sum() / 4
    wanted = wanted - sft_weight * (by_row * sums[:, 0]).sum() / lengths[:, 0].sum()
    wanted.backward()
    assert worst_gradient_gap(gradients(model), gradients(oracle)) < 1e-4


def test_a_weight_changes_the_logged_loss_and_no_other_metric():
    plain = build_groups(1)
    drained = []
    for weight in (1.0, 4.0):
        (batch,) = build_step([replace(plain[0], weight=weight)], Cut()).micro_batches
        sums = MetricSums()
        sums.add(batch, ResponseLogps(torch.tensor([[-4.0, -5.0]]), batch.lengths), StepLoss(load_objective("simpo")))
        drained.append(sums.drain(lambda values: values))
    one, four = drained
    assert four.pop("loss") == pytest.approx(4 * one.pop("loss"))
    assert four == one


def test_an_objective_that_compares_all_rows_refuses_a_weight():
    groups = [replace(group, weight=2.0) for group in build_groups(2)]
    with pytest.raises(DataError, match=r"^small\[train\] row 1: the row has a weight, and AOT compares all rows"):
        check_row_weights(load_objective("aot"), groups)
