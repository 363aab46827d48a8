"""PPO: proximal policy optimisation on responses that the policy samples, with a value model and a KL penalty.

    r_t = -kl_coef·(log π_old(y_t) - log π_ref(y_t)), and at the last token the score of the response besides
    δ_t = r_t + gamma·V_old(t+1) - V_old(t),   A_t = δ_t + gamma·lam·A_{t+1},   R_t = A_t + V_old(t)
    policy loss = max(-A_t·ρ_t, -A_t·clip(ρ_t, 1 ∓ cliprange)),   ρ_t = π(y_t) / π_old(y_t),   A whitened
    value loss  = ½ max((V_t - R_t)², (clip(V_t, V_old(t) ∓ cliprange_value) - R_t)²)

Schulman et al. 2017, arXiv:1707.06347, Eq. 7; GAE: Schulman et al. 2016, arXiv:1506.02438, Eq. 16; the KL penalty per
token: Ouyang et al. 2022, arXiv:2203.02155; value clipping and whitening: Huang et al. 2024, arXiv:2403.17031.

Comes in: rows of responses (S, L), filled up on the right, with a mask of their tokens; `old` is from when they were
sampled. Goes out: rewards and advantages of that shape, and losses for each token. `preftune.train.ppo` is the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from preftune.objectives.base import Method, is_number, require
from preftune.types import Layout

Sum = Callable[[Tensor], Tensor]  # of a tensor over all processes


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class PPO(Method):
    """The settings of PPO and its formulas.

    Args:
        reward_model_name_or_path: a trained reward model; the value model starts from it.
        reward_model_revision: of a hub name.
        reward_function: instead, `module:function` of (prompts, responses) -> a number for each response; the value
            model starts from the model that is trained, with a new head.
        reward_endpoint: instead, the address of an OpenAI-compatible server, or several with commas between; the value
            model starts the same way.
        reward_judge: the name there of the model that rates responses from 1 to 10.
        reward_template: a text file with {prompt} and {response}, in place of the question that the judge is asked.
        reward_key_from: the environment variable with the key of the endpoint.
        response_length: tokens that are sampled at most.
        temperature: > 0, of sampling; the log-probs are those of the distribution that is sampled from.
        stop_token: the text of the token that ends a response; eos: the chat template's end of turn, and what the model
            itself stops at.
        missing_eos_penalty: taken off the score of a response that did not end, >= 0; None takes nothing off.
        num_ppo_epochs: passes over the responses of one rollout. Not `num_train_epochs`, which are passes over prompts.
        num_mini_batches: optimizer steps of one such pass; a rollout has that many times the global batch of prompts.
        local_rollout_forward_batch_size: sequences of one pass without gradient, in each process.
        whiten_rewards: bring the rewards of a rollout to a standard deviation of 1; their mean stays.
        kl_coef: nats to units of the score, >= 0.
        cliprange: of the ratio of probabilities, in (0, 1).
        vf_coef: weight of the value loss, >= 0.
        cliprange_value: of the value's change, > 0, in units of the score.
        gamma: discount of a reward for each token that it is away, in (0, 1]. SimPO's gamma is another thing.
        lam: lambda of GAE, in [0, 1].

    Raises:
        RecipeError: a field is out of range.
    """

    layout: ClassVar[Layout] = Layout.PROMPT
    needs_reference: ClassVar[bool] = True
    group_local: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv:1707.06347, Eq. 7; arXiv:1506.02438, Eq. 16; arXiv:2203.02155"
    formula: ClassVar[str] = (
        "max(-A·ρ, -A·clip(ρ, 1 ∓ cliprange)) + vf_coef·½ max((V - R)², (V_clipped - R)²), "
        "reward: score - kl_coef·(log π - log π_ref)"
    )

    reward_model_name_or_path: str | None = None
    reward_model_revision: str = "main"
    reward_function: str | None = None
    reward_endpoint: str | None = field(default=None, repr=False)  # no part of what a resumed run must have the same
    reward_judge: str | None = None
    reward_template: str | None = None
    reward_key_from: str = field(default="OPENAI_API_KEY", repr=False)
    response_length: int = 512
    temperature: float = 0.7
    stop_token: str = "eos"
    missing_eos_penalty: float | None = None
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    local_rollout_forward_batch_size: int = 64
    whiten_rewards: bool = False
    kl_coef: float = 0.05
    cliprange: float = 0.2
    vf_coef: float = 0.1
    cliprange_value: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        counts = ("response_length", "num_ppo_epochs", "num_mini_batches", "local_rollout_forward_batch_size")
        for key in counts:
            value = getattr(self, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= 1, key, "a whole number of at least 1", value)
        for key in ("kl_coef", "vf_coef"):
            value = getattr(self, key)
            require(is_number(value) and value >= 0, key, "a number of at least 0", value)
        for key in ("temperature", "cliprange_value"):
            value = getattr(self, key)
            require(is_number(value) and value > 0, key, "a number above 0", value)
        clip, penalty = self.cliprange, self.missing_eos_penalty
        require(is_number(clip) and 0 < clip < 1, "cliprange", "a number above 0 and below 1", clip)
        known = penalty is None or (is_number(penalty) and penalty >= 0)
        require(known, "missing_eos_penalty", "null or a number of at least 0", penalty)
        require(is_number(self.gamma) and 0 < self.gamma <= 1, "gamma", "a number above 0, up to 1", self.gamma)
        require(is_number(self.lam) and 0 <= self.lam <= 1, "lam", "a number from 0 to 1", self.lam)
        require(bool(self.stop_token), "stop_token", "eos or the text of a token", self.stop_token)

    def describe(self) -> str:
        low, high = 1 - self.cliprange, 1 + self.cliprange
        return (
            f"max(-A·ρ, -A·clip(ρ, {low:g}, {high:g})) + {self.vf_coef:g}·value loss, reward: score - "
            f"{self.kl_coef:g}·(log π - log π_ref) per token, gamma {self.gamma:g}, lam {self.lam:g}"
        )

    # --- of a rollout, (S, L)

    def ended_scores(self, scores: Tensor, ended: Tensor) -> Tensor:
        """(S,) the scores, less the penalty of responses that did not end (`ended` (S,) bool)."""
        if self.missing_eos_penalty is None:
            return scores
        return torch.where(ended, scores, scores - self.missing_eos_penalty)

    def token_rewards(self, scores: Tensor, logps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """(S, L) of scores (S,) and log-probs (S, L): the KL penalty of each token, and at the last one the score."""
        penalty = -self.kl_coef * torch.where(mask, logps - reference, 0.0)
        last = mask.sum(dim=1, keepdim=True) - 1
        return penalty.scatter_add(1, last, scores[:, None].to(penalty.dtype))

    def advantages(self, rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(S, L) GAE, not whitened; after a response's last token there is nothing, which is worth 0."""
        rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
        found = torch.zeros_like(rewards)
        later_value, later = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + self.gamma * later_value - values[:, t]
            later = torch.where(mask[:, t], delta + self.gamma * self.lam * later, 0.0)
            found[:, t], later_value = later, values[:, t]
        return found

    # --- of an update, any shape

    def policy_losses(self, logps: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each token, and the ratios."""
        ratios = (logps - old).exp()
        clipped = ratios.clamp(1 - self.cliprange, 1 + self.cliprange)
        return torch.maximum(-advantages * ratios, -advantages * clipped), ratios

    def value_losses(self, values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each token before `vf_coef`, and where (bool) the clipped value decides it."""
        clipped = torch.minimum(torch.maximum(values, old - self.cliprange_value), old + self.cliprange_value)
        free, held = (values - returns) ** 2, (clipped - returns) ** 2
        return 0.5 * torch.maximum(free, held), held > free

    def policy_clipped(self, ratios: Tensor, advantages: Tensor) -> Tensor:
        """Where (bool) the clipped ratio decides the loss, so that the token gives no gradient."""
        clipped = ratios.clamp(1 - self.cliprange, 1 + self.cliprange)
        return -advantages * clipped > -advantages * ratios


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, summed: Sum = _alone) -> Tensor:
    """Values with mean 0 (unless the mean is to stay) and variance 1 over the masked places of all processes.

    The variance is divided by the count less 1.
    """
    kept = torch.where(mask, values, 0.0)
    count, total = summed(torch.stack([mask.sum().to(values.dtype), kept.sum()]))
    mean = total / count
    variance = summed(torch.where(mask, (values - mean) ** 2, 0.0).sum()) / (count - 1).clamp(min=1)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def approximate_kl(logps: Tensor, old: Tensor) -> Tensor:
    """½(log π - log π_old)² of each token: how far the policy is from the one that sampled."""
    return 0.5 * (logps - old) ** 2
