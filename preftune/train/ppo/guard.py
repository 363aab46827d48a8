"""The guard against non-finite steps in PPO: an optimizer step is left out, the rest of the rollout goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.train.nonfinite import FiniteGuard
from preftune.types import PackedBatch


class UpdateGuard(FiniteGuard):
    """Of a `PPOTrainer`. What it keeps for a replay are sampled responses, and the policy's weights."""

    looked_at = "Log-probs or values"

    def note_tokens(self, batch: PackedBatch, logps: Tensor, values: Tensor) -> None:
        """A micro-batch, and the numbers of its response tokens, one row after the other."""
        rows = [torch.stack([part.sum() for part in table.split(list(batch.rows_per_group))]) for table in
                (logps.detach(), values.detach())]  # fmt: skip
        self.note(batch, torch.stack(rows, dim=1))

    def _leave_out(self, model: Any) -> None:
        if not self.trainer.args.fp16:  # its scaler wants to see the gradients, and leaves the step out by itself
            self.trainer.optimizer.zero_grad()

    def _keep_weights(self, folder: Path) -> bool:
        self.trainer.save_model(folder)
        return True
