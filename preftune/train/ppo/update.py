"""The optimizer steps on one rollout: `num_ppo_epochs` passes, each in `num_mini_batches` steps.

Losses are summed over tokens and divided once by the tokens of the whole optimizer step over all processes, so that
the gradient does not depend on how the step is cut into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from preftune.data.pack import pack
from preftune.data.plan import Cut, plan_step
from preftune.model.tokens import TokenLogps, token_values
from preftune.objectives.ppo import PPO, Sum, approximate_kl
from preftune.train.ppo.guard import UpdateGuard
from preftune.train.ppo.rollout import Rollout, Targets

# Each is a mean over the tokens of all updates of a rollout.
FIGURES = (
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "policy/entropy_avg",
    "val/ratio",
    "val/ratio_square",
)


class Updater:
    """Takes the steps, and adds up what is logged of them.

    Args:
        policy, value: as engines have wrapped them.
        parameters: all that is trained, for the clipping of gradients.
        padded: the models are on the padded road, where a micro-batch costs its widest row each.
        summed: adds a tensor up over processes.
        guard: looks at each step before the optimizer moves.
    """

    def __init__(
        self,
        ppo: PPO,
        policy: Any,
        value: Any,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        *,
        parameters: Sequence[torch.nn.Parameter],
        cut: Cut,
        max_grad_norm: float,
        summed: Sum,
        guard: UpdateGuard,
    ) -> None:
        self.ppo, self.policy, self.value, self.optimizer = ppo, policy, value, optimizer
        self.accelerator, self.parameters, self.cut = accelerator, parameters, cut
        self.max_grad_norm, self.summed, self.guard = max_grad_norm, summed, guard

    def run(self, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """All steps on a rollout; returns the figures, over all processes, of the steps that were taken."""
        self.policy.train()
        self.value.train()
        device = rollout.mask.device
        totals, tokens = torch.zeros(len(FIGURES), device=device), torch.zeros((), device=device)
        norms: list[float] = []
        for _ in range(self.ppo.num_ppo_epochs):
            for members in torch.randperm(len(rollout.groups)).chunk(self.ppo.num_mini_batches):
                left_out = self.guard.skipped
                sums, norm = self._step(rollout, targets, members.tolist())
                if self.guard.skipped > left_out:
                    continue
                totals += sums
                tokens += rollout.mask[members.to(device)].sum()
                norms.append(norm)
        if not norms:
            return {}
        *means, _ = (self.summed(torch.cat([totals, tokens[None]])) / self.summed(tokens[None])).tolist()
        found = dict(zip(FIGURES, means, strict=True))
        found["val/ratio_var"] = max(found.pop("val/ratio_square") - found["val/ratio"] ** 2, 0.0)
        return found | {"grad_norm": sum(norms) / len(norms)}

    def _step(self, rollout: Rollout, targets: Targets, members: list[int]) -> tuple[Tensor, float]:
        """One optimizer step on some responses; returns sums of `FIGURES` over their tokens, and the gradient norm."""
        groups = [rollout.groups[number] for number in members]
        tokens = self.summed(rollout.mask[members].sum()[None]).item()
        plan = plan_step([group.packed_length() for group in groups], self.cut)[0]
        sums = torch.zeros(len(FIGURES), device=rollout.mask.device)
        for number, planned in enumerate(plan):
            chosen = [members[place] for place in planned.groups]
            with ExitStack() as stack:
                if number < len(plan) - 1:
                    for model in (self.policy, self.value):
                        stack.enter_context(self.accelerator.no_sync(model))
                self.accelerator.gradient_state._set_sync_gradients(number == len(plan) - 1)
                loss, part = self._losses(rollout, targets, chosen)
                # engines average over ranks; the step's loss is a sum of shares
                self.accelerator.backward(loss * (self.accelerator.num_processes / tokens))
            sums += part
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)
        norm = float(self.guard.check(self.policy, norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums, norm

    def _losses(self, rollout: Rollout, targets: Targets, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The loss summed over the tokens of some responses, and the sums of `FIGURES`."""
        ppo, mask = self.ppo, rollout.mask[chosen]
        batch = pack([rollout.groups[number] for number in chosen]).to(mask.device)
        with self.accelerator.autocast():
            logps, entropy = self.policy(batch=batch, read=TokenLogps(ppo.temperature, entropy=True))
            values = self.value(batch=batch, read=token_values)
        logps, values = logps.float(), values.float()
        self.guard.note_tokens(batch, logps, values)
        tables = (rollout.logps, rollout.values, targets.advantages, targets.returns)
        old, old_values, advantages, returns = (table[chosen][mask] for table in tables)
        policy_losses, ratios = ppo.policy_losses(logps, old, advantages)
        value_losses, value_clipped = ppo.value_losses(values, old_values, returns)
        loss = policy_losses.sum() + ppo.vf_coef * value_losses.sum()
        with torch.no_grad():
            figures = (
                approximate_kl(logps, old),
                ppo.policy_clipped(ratios, advantages).float(),
                policy_losses,
                value_losses,
                value_clipped.float(),
                entropy.float(),
                ratios,
                ratios**2,
            )
            return loss, torch.stack([figure.sum() for figure in figures])
