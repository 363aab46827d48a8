"""The optimizer steps on one rollout: `num_ppo_epochs` passes, each in `num_mini_batches` steps.

Losses are summed over tokens and divided once by the tokens of the whole optimizer step over all processes, so that
the gradient does not depend on how the step is cut into micro-batches. Where memory ends, the budget of tokens is
halved and the gradients of the step are added up again. Several processes do so together: each adds up its own, and
they meet when all are there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from preftune.data.pack import pack
from preftune.data.plan import Cut, plan_step
from preftune.errors import TrainingError
from preftune.model.load import one_line
from preftune.model.tokens import TokenLogps, token_values
from preftune.objectives.ppo import PPO, Sum, approximate_kl
from preftune.train.ppo.guard import UpdateGuard
from preftune.train.ppo.rollout import Rollout, Targets
from preftune.train.ranks import average_gradients, meet, of_all_ranks
from preftune.train.redo import free_memory, is_out_of_memory

logger = logging.getLogger(__name__)
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
        policy, value: as engines have wrapped them; what DDP has wrapped is used without, and meets at a step's end.
        parameters: all that is trained, for the clipping of gradients.
        cut: of a step into micro-batches; its budget shrinks where memory ends.
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
        self.ppo, self.optimizer = ppo, optimizer
        self.apart = isinstance(policy, DistributedDataParallel)
        self.policy, self.value = (policy.module, value.module) if self.apart else (policy, value)
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
        sums = self._gradients(rollout, targets, members)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)
        norm = float(self.guard.check(self.policy, norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums, norm

    def _gradients(self, rollout: Rollout, targets: Targets, members: list[int]) -> Tensor:
        """Of a step, the mean over processes; returns the sums of `FIGURES` over this process's tokens.

        Raises:
            TrainingError: a single response does not fit into memory.
        """
        tokens = self.summed(rollout.mask[members].sum()[None]).item()
        while True:
            said = None
            try:
                sums = self._micro_batches(rollout, targets, members, tokens)
            except RuntimeError as cause:
                if not is_out_of_memory(cause):
                    raise
                said = one_line(cause)
            ended, held = said is not None, []
            if self.apart:
                ended, held = meet(self.parameters, ended, self.accelerator.device)
            if not ended:
                break
            self._shrink([rollout.groups[number].packed_length() for number in members], said)
        if self.apart:
            average_gradients(self.parameters, held)
        return sums

    def _micro_batches(self, rollout: Rollout, targets: Targets, members: list[int], tokens: float) -> Tensor:
        sums = torch.zeros(len(FIGURES), device=rollout.mask.device)
        self.accelerator.gradient_state._set_sync_gradients(True)  # of the whole process: another run may have left it
        for planned in plan_step([rollout.groups[number].packed_length() for number in members], self.cut)[0]:
            loss, part = self._losses(rollout, targets, [members[place] for place in planned.groups])
            # the mean over processes follows; the step's loss is a sum of shares
            self.accelerator.backward(loss * (self.accelerator.num_processes / tokens))
            sums += part
        return sums

    def _shrink(self, costs: list[int], said: str | None) -> None:
        """To the smallest budget that any process asks for whose memory has ended."""
        self.guard.seen = []
        self.optimizer.zero_grad()
        free_memory()
        process, number = self.accelerator.process_index, self.guard.trainer.state.global_step + 1
        own = [] if said is None else [(self._smaller(costs), self._largest(costs), f"process {process}: {said}")]
        budget, largest, said = min(of_all_ranks(own))
        if not budget:
            raise TrainingError(
                f"Out of memory in step {number}: a prompt with its response alone has {largest} tokens ({said}). Set "
                "gradient_checkpointing: true, or a smaller response_length or max_prompt_length."
            )
        self.cut = replace(self.cut, max_tokens=budget)
        if process == 0:
            logger.warning(
                "Out of memory in step %d with micro-batches of up to %d tokens; its update is done again with %d, and "
                "so are the next ones (%s).",
                number, largest, budget, said,
            )  # fmt: skip

    def _largest(self, costs: list[int]) -> int:
        """Tokens of the largest micro-batch of a step."""
        return max(sum(costs[place] for place in planned.groups) for planned in plan_step(costs, self.cut)[0])

    def _smaller(self, costs: list[int]) -> int:
        """Half the budget, or half of that, until a step has more micro-batches; 0 where each row has its own."""
        count = len(plan_step(costs, self.cut)[0])
        if count == len(costs):
            return 0
        budget = min(self._largest(costs), self.cut.max_tokens or self._largest(costs)) // 2
        while len(plan_step(costs, replace(self.cut, max_tokens=budget))[0]) == count:
            budget //= 2
        return budget

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
