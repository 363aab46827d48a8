"""One rollout: prompts in, responses with all that the updates need to know of them out.

Tables are (S, L): a row a response, filled up on the right where `mask` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from preftune.data.pack import pack
from preftune.model.reference import evaluating
from preftune.model.tokens import TokenLogps, token_values
from preftune.objectives.ppo import PPO, Sum, whiten
from preftune.train.ppo.models import Models
from preftune.train.ppo.prompts import Prompt
from preftune.train.ppo.sampling import Sampling, sample
from preftune.types import PackedBatch, TokenizedGroup


@dataclass(frozen=True)
class Rollout:
    """Responses and what is known of them when they are sampled.

    texts: decoded without special tokens; scores (S,) with the penalty for a missing end; ended (S,) bool.
    mask, logps, reference, values: (S, L); the last three float32, nats and units of the score.
    """

    groups: list[TokenizedGroup]
    texts: list[str]
    scores: Tensor
    ended: Tensor
    mask: Tensor
    logps: Tensor
    reference: Tensor
    values: Tensor

    @property
    def kl(self) -> Tensor:
        """(S,) log π - log π_ref of each response, nats."""
        return torch.where(self.mask, self.logps - self.reference, 0.0).sum(dim=1)

    def to_metrics(self, ppo: PPO) -> dict[str, Tensor]:
        """(S,) of each figure that is logged of a rollout."""
        penalty = -ppo.kl_coef * self.kl
        return {
            "objective/kl": self.kl,
            "objective/entropy": -torch.where(self.mask, self.logps, 0.0).sum(dim=1),
            "objective/non_score_reward": penalty,
            "objective/rlhf_reward": penalty + self.scores,
            "objective/scores": self.scores,
            "lengths/response": self.mask.sum(dim=1).float(),
            "ended": self.ended.float(),
        }


@dataclass(frozen=True)
class Targets:
    """(S, L) what the updates aim at: whitened advantages, and returns."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def roll_out(
    models: Models, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, ppo: PPO, sampling: Sampling
) -> Rollout:
    """Sample a response to each prompt, and score it; passes hold `sampling.batch` sequences."""
    responses = sample(models.policy, [prompt.ids for prompt in prompts], sampling)
    groups = [prompt.answered(response.ids) for prompt, response in zip(prompts, responses, strict=True)]
    texts = [tokenizer.decode(response.ids, skip_special_tokens=True) for response in responses]
    device = models.policy.device
    ended = torch.tensor([response.ended for response in responses], device=device)
    scores = torch.tensor(models.reward(prompts, groups, texts), dtype=torch.float32, device=device)
    read = TokenLogps(ppo.temperature)
    with evaluating(models.policy), evaluating(models.value):
        tables = [
            _table(ask, groups, sampling.batch, device)
            for ask in (
                lambda batch: models.policy(batch=batch, read=read),
                lambda batch: models.reference(batch, read=read),
                lambda batch: models.value(batch=batch, read=token_values),
            )
        ]
    lengths = torch.tensor([len(response.ids) for response in responses], device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    return Rollout(groups, texts, ppo.ended_scores(scores, ended), ended, mask, *tables)


def _table(
    ask: Callable[[PackedBatch], Any], groups: Sequence[TokenizedGroup], size: int, device: torch.device
) -> Tensor:
    rows: list[Tensor] = []
    for start in range(0, len(groups), size):
        batch = pack(groups[start : start + size]).to(device)
        rows += ask(batch).float().split(list(batch.rows_per_group))
    return pad_sequence(rows, batch_first=True)


def targets_of(rollout: Rollout, ppo: PPO, summed: Sum) -> Targets:
    """Rewards, whitened where asked for, to advantages and returns; `summed` adds up over processes."""
    rewards = ppo.token_rewards(rollout.scores, rollout.logps, rollout.reference, rollout.mask)
    if ppo.whiten_rewards:
        rewards = whiten(rewards, rollout.mask, shift_mean=False, summed=summed)
    advantages = ppo.advantages(rewards, rollout.values, rollout.mask)
    returns = torch.where(rollout.mask, advantages + rollout.values, 0.0)
    return Targets(whiten(advantages, rollout.mask, summed=summed), returns)
