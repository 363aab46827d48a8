"""One update of PPO against the same loss made from whole logits of one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from preftune.data.plan import Cut
from preftune.model.heads import load_reward_model, to_scorer
from preftune.model.policy import to_policy
from preftune.objectives.ppo import PPO
from preftune.train.ppo.guard import UpdateGuard
from preftune.train.ppo.rollout import Rollout, Targets
from preftune.train.ppo.update import Updater
from tests.small import build_group, build_model

GROUPS = [build_group(5, 7), build_group(3, 1, row=2), build_group(9, 4, row=3), build_group(2, 6, row=4)]
PPO_SETTINGS = PPO(temperature=0.7, cliprange=0.1, cliprange_value=0.3, vf_coef=0.5, num_ppo_epochs=1)
RATE = 0.1


@pytest.fixture
def models(tmp_path):
    build_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    value = load_reward_model(str(tmp_path)).double()
    return build_model(dtype=torch.float64), value


def slow_logps(policy, group):
    ids = torch.tensor([group.prompt_ids + group.response_ids[0]])
    logits = policy(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1] / PPO_SETTINGS.temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(group.response_ids[0])[:, None])[:, 0]


def slow_values(value, group):
    ids = torch.tensor([group.prompt_ids + group.response_ids[0]])
    return value.score(value.model(input_ids=ids).last_hidden_state[0, len(group.prompt_ids) - 1 : -1])[:, 0]


def table(rows):
    return pad_sequence([row.detach() for row in rows], batch_first=True)


@pytest.mark.parametrize("cut", [Cut(), Cut(max_groups=1)])
def test_an_update_is_that_of_the_loss_written_out(cut, models):
    policy, value = models
    draw = torch.Generator().manual_seed(3)

    def noise(rows, size):
        return [row.detach() + size * torch.randn(row.shape, generator=draw, dtype=row.dtype) for row in rows]

    logps = [slow_logps(policy, group) for group in GROUPS]
    values = [slow_values(value, group) for group in GROUPS]
    old, old_values, advantages, returns = noise(logps, 0.2), noise(values, 0.5), noise(logps, 1.0), noise(values, 1.0)
    tokens = sum(row.numel() for row in logps)
    total = 0.0
    for new, before, gain, v, v_before, target in zip(logps, old, advantages, values, old_values, returns, strict=True):
        ratio = (new - before).exp()
        total = total + torch.maximum(-gain * ratio, -gain * ratio.clamp(0.9, 1.1)).sum() / tokens
        held = v_before + (v - v_before).clamp(-0.3, 0.3)
        total = total + 0.5 * 0.5 * torch.maximum((v - target) ** 2, (held - target) ** 2).sum() / tokens
    total.backward()
    wanted = [{name: p.detach() - RATE * p.grad for name, p in model.named_parameters()} for model in (policy, value)]
    policy.zero_grad()
    value.zero_grad()

    mask = table([torch.ones_like(row) for row in logps]).bool()
    rollout = Rollout(
        GROUPS, [""] * 4, torch.zeros(4), torch.ones(4).bool(), mask, table(old), table(old), table(old_values)
    )
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    updater = Updater(
        PPO_SETTINGS,
        to_policy(policy),
        to_scorer(value),
        optimizer,
        Accelerator(cpu=True),
        parameters=parameters,
        cut=cut,
        max_grad_norm=0.0,
        summed=lambda values: values,
        guard=UpdateGuard(SimpleNamespace(args=SimpleNamespace(fp16=False, device=torch.device("cpu"))), "stop"),
    )
    figures = updater.run(rollout, Targets(table(advantages), table(returns)))
    for model, expected in zip((policy, value), wanted, strict=True):
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter, expected[name], atol=1e-6), name
    loss = figures["loss/policy_avg"] + 0.5 * figures["loss/value_avg"]
    assert loss == pytest.approx(total.item(), rel=1e-5)
    ratios = torch.cat([(new - before).exp() for new, before in zip(logps, old, strict=True)])
    assert figures["val/ratio"] == pytest.approx(ratios.mean().item(), rel=1e-5)
    assert figures["val/ratio_var"] == pytest.approx(ratios.var(correction=0).item(), rel=1e-3)
    assert 0 < figures["policy/clipfrac_avg"] < 1 and 0 < figures["val/clipfrac_avg"] < 1
