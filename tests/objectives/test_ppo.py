"""PPO's formulas: against numbers worked out by hand, and against sums written out token by token in float64."""

import math
import random

import pytest
import torch

from preftune.errors import RecipeError
from preftune.objectives import load_method, load_objective, method_names, objective_names
from preftune.objectives.ppo import PPO, approximate_kl, whiten

MASK = torch.tensor([[True, True, True], [True, True, False]])


def rows(*lines):
    return torch.tensor(lines, dtype=torch.float64)


def test_the_penalty_stands_at_every_token_and_the_score_at_the_last():
    logps, reference = rows([-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]), rows([-1.5, -2.0, -1.0], [-2.0, -3.0, 7.0])
    found = PPO(kl_coef=0.1).token_rewards(torch.tensor([2.0, -1.0]), logps, reference, MASK)
    # log π - log π_ref: 0.5 0 -2 | 1 2; times -0.1, and the scores 2 and -1 at the third and the second token
    assert torch.allclose(found, rows([-0.05, 0.0, 0.2 + 2.0], [-0.1, -0.2 - 1.0, 0.0]))


def test_advantages_worked_out_by_hand():
    rewards, values = rows([0.0, 0.0, 1.0]), rows([0.5, 0.6, 0.8])
    found = PPO(gamma=0.9, lam=0.5).advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool))
    # δ: 0.9·0.6-0.5 = 0.04, 0.9·0.8-0.6 = 0.12, 1-0.8 = 0.2; A = δ + 0.45·A of the next
    assert torch.allclose(found, rows([0.04 + 0.45 * (0.12 + 0.45 * 0.2), 0.12 + 0.45 * 0.2, 0.2]))


def test_without_discount_an_advantage_is_what_is_still_to_come_less_the_value():
    rewards, values = rows([0.1, -0.2, 1.0], [0.3, 0.4, 5.0]), rows([0.5, 0.6, 0.8], [0.1, 0.2, 7.0])
    found = PPO(gamma=1.0, lam=1.0).advantages(rewards, values, MASK)
    assert torch.allclose(found, rows([0.9 - 0.5, 0.8 - 0.6, 1.0 - 0.8], [0.7 - 0.1, 0.4 - 0.2, 0.0]))


def test_whitened_numbers_worked_out_by_hand():
    values = rows([1.0, 2.0, 3.0], [2.0, 7.0, 100.0])  # of the five, mean 3, squares 4+1+0+1+16 = 22, over 4: 5.5
    scale = math.sqrt(5.5)
    white = rows([-2 / scale, -1 / scale, 0.0], [-1 / scale, 4 / scale, 0.0])
    assert torch.allclose(whiten(values, MASK), white)
    assert torch.allclose(whiten(values, MASK, shift_mean=False), torch.where(MASK, white + 3.0, 0.0))


def test_two_processes_whiten_as_one():
    values, wanted = rows([1.0, 2.0, 3.0], [2.0, 7.0, 100.0]), whiten(rows([1, 2, 3], [2, 7, 100]), MASK)
    # what a sum over both processes gives, in the order in which the first one asks for it
    asked = iter([torch.tensor([5.0, 15.0], dtype=torch.float64), torch.tensor(22.0, dtype=torch.float64)])
    assert torch.allclose(whiten(values[:1], MASK[:1], summed=lambda mine: next(asked)), wanted[:1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [(1.0, 2.0, -2.0, False), (1.5, 2.0, -2.4, True), (0.5, 2.0, -1.0, False), (1.5, -1.0, 1.5, False),
     (0.5, -1.0, 0.8, True)],
)  # fmt: skip
def test_the_ratio_is_held_only_where_it_would_be_rewarded(ratio, advantage, loss, clipped):
    ppo, advantages = PPO(cliprange=0.2), torch.tensor([advantage])
    losses, ratios = ppo.policy_losses(torch.tensor([math.log(ratio)]), torch.zeros(1), advantages)
    assert losses.item() == pytest.approx(loss)
    assert ppo.policy_clipped(ratios, advantages).item() is clipped


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [(1.1, 1.0, 2.0, 0.5 * 0.81, False), (1.5, 1.0, 2.0, 0.5 * 0.64, True), (0.5, 1.0, 2.0, 0.5 * 2.25, False)],
)
def test_a_value_gains_nothing_by_leaving_its_range(value, old, target, loss, clipped):
    found, held = PPO(cliprange_value=0.2).value_losses(*(torch.tensor([x]) for x in (value, old, target)))
    assert found.item() == pytest.approx(loss) and held.item() is clipped


def test_a_response_that_does_not_end_pays_once():
    scores, ended = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert PPO(missing_eos_penalty=2.0).ended_scores(scores, ended).tolist() == [1.0, -1.0]
    assert PPO().ended_scores(scores, ended).tolist() == [1.0, 1.0]


def naive(ppo, scores, logps, reference, values, lengths):
    """Rewards, advantages and returns of each response by itself, in plain Python."""
    found = []
    for s, count in enumerate(lengths):
        rewards = [-ppo.kl_coef * (logps[s][t] - reference[s][t]) for t in range(count)]
        rewards[-1] += scores[s]
        deltas = [
            rewards[t] + ppo.gamma * (values[s][t + 1] if t + 1 < count else 0.0) - values[s][t] for t in range(count)
        ]
        advantages = [
            sum((ppo.gamma * ppo.lam) ** (later - t) * deltas[later] for later in range(t, count)) for t in range(count)
        ]
        found.append((rewards, advantages, [a + v for a, v in zip(advantages, values[s], strict=False)]))
    return found


@pytest.mark.parametrize("settings", [{}, {"gamma": 0.9, "lam": 0.7, "kl_coef": 0.3}, {"lam": 0.0}, {"lam": 1.0}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_rollout_agrees_with_sums_written_out(settings, dtype, tolerance):
    ppo, draw = PPO(**settings), random.Random(1)
    lengths = [1, 7, 4, 12, 12]
    tables = [[[draw.gauss(-2, 1) for _ in range(12)] for _ in lengths] for _ in range(3)]
    scores = [draw.gauss(0, 2) for _ in lengths]
    logps, reference, values = (torch.tensor(table, dtype=dtype) for table in tables)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    rewards = ppo.token_rewards(torch.tensor(scores, dtype=dtype), logps, reference, mask)
    advantages = ppo.advantages(rewards, values, mask)
    for s, (by_hand, gains, _) in enumerate(naive(ppo, scores, *tables, lengths)):
        count = lengths[s]
        assert rewards[s, :count].tolist() == pytest.approx(by_hand, abs=tolerance)
        assert advantages[s, :count].tolist() == pytest.approx(gains, abs=tolerance)
        assert not rewards[s, count:].any() and not advantages[s, count:].any()


def test_the_policy_gradient_of_the_first_update_is_that_of_reinforce():
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses, _ = PPO().policy_losses(logps, logps.detach(), torch.tensor([3.0, -0.5]))
    losses.sum().backward()
    assert logps.grad.tolist() == [-3.0, 0.5]
    assert approximate_kl(torch.tensor([-1.0]), torch.tensor([-1.4])).item() == pytest.approx(0.08)


def test_ppo_is_a_method_and_no_objective_of_given_responses():
    assert "ppo" in method_names() and "ppo" not in objective_names()
    assert load_method("ppo", kl_coef=0.1).kl_coef == 0.1
    with pytest.raises(RecipeError, match="preftune ppo"):
        load_objective("ppo")
    with pytest.raises(RecipeError, match="did you mean 'cliprange'"):
        load_method("ppo", cliprang=0.1)
