"""A step whose log-probs or gradient are not numbers never reaches the weights.

It is looked at before the optimizer moves. The run stops, or leaves the step out (`on_nonfinite: skip`, at most
`MOST_SKIPPED` times); either way the rows are named, and kept with the weights for `preftune replay`.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from preftune.data.pack import unpack
from preftune.errors import TrainingError
from preftune.model.load import one_line
from preftune.train.ranks import agreed, of_all_ranks
from preftune.types import Origin, PackedBatch, TokenizedGroup

logger = logging.getLogger(__name__)
MOST_SKIPPED = 10  # of a run: a run that has more of them is not well
FOLDER, ROWS = "nonfinite", "rows.json"


class FiniteGuard:
    """Looks at each step between its gradient and the optimizer."""

    looked_at = "Log-probs"

    def __init__(self, trainer: Any, action: str) -> None:
        self.trainer, self.action = trainer, action
        self.seen: list[tuple[PackedBatch, Tensor]] = []
        self.skipped = 0

    def note(self, batch: PackedBatch, sums: Tensor) -> None:
        """A micro-batch of the step and its log-probs."""
        self.seen.append((batch, sums))

    def check(self, model: Any, norm: Any) -> Any:
        """The gradient's norm, if all is well; 0 for a step that is left out.

        Raises:
            TrainingError: it is not, and the run is to stop.
        """
        trainer = self.trainer
        seen, self.seen = self.seen, []
        finite = [sums.sum().isfinite() for _, sums in seen]
        if norm is not None and not trainer.args.fp16:  # fp16 leaves such steps out by itself
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            finite.append(torch.as_tensor(whole, device=trainer.args.device).isfinite())
        # the one thing that a step reads from the device, when all its gradients are there
        if not finite or not agreed(~torch.stack(finite).all(), trainer.args.device):
            return norm
        bad = [(batch, ~s.isfinite().all(1)) for batch, s in seen if not s.isfinite().all()]
        rows = [str(batch.origins[i]) for batch, groups in bad for i in groups.nonzero()[:, 0].tolist()]
        groups = [group for batch, _ in bad or seen for group in unpack(batch) if batch.weights.any()]
        rows, groups = of_all_ranks(rows), of_all_ranks(groups)
        number = trainer.state.global_step + 1
        if rows:
            said = f"{self.looked_at} became non-finite at step {number}, in {len(rows)} groups: {', '.join(rows[:5])}."
        else:
            said = f"The gradient became non-finite at step {number}, with finite {self.looked_at.lower()}."
        kept = self._keep(number, rows, groups)
        if self.action != "skip" or self.skipped >= MOST_SKIPPED:
            after = f" It is the {self.skipped + 1}th such step." if self.skipped else ""
            raise TrainingError(
                f"{said}{after} The step was not taken; see {kept}. Lower the learning rate, take bf16 or float32, or "
                "leave the rows out; the last checkpoint is intact."
            )
        self.skipped += 1
        logger.warning("%s The step is left out (%d of at most %d); see %s.", said, self.skipped, MOST_SKIPPED, kept)
        self._leave_out(model)
        return norm if trainer.args.fp16 else 0.0

    def _leave_out(self, model: Any) -> None:
        trainer = self.trainer
        if not trainer.args.fp16:  # its scaler wants to see the gradients, and leaves the step out by itself
            model.zero_grad(set_to_none=True)
        trainer.in_memory.before.restore(trainer)
        trainer._globalstep_last_logged += 1  # a step that the window does not hold

    def _keep(self, step: int, rows: list[str], groups: list[TokenizedGroup]) -> str:
        """Write rows and weights for a replay; returns how to look at them."""
        trainer = self.trainer
        folder = Path(trainer.args.output_dir) / FOLDER / f"step-{step}"
        if not trainer.args.should_save:
            return str(folder)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            record = {"step": step, "rows": rows, "groups": [asdict(group) for group in groups]}
            (folder / ROWS).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
            kept = self._keep_weights(folder)
        except OSError as cause:
            return f"no replay: it could not be kept ({one_line(cause)})"
        return f"preftune replay {folder}" + ("" if kept else " --model CHECKPOINT")

    def _keep_weights(self, folder: Path) -> bool:
        """Whether they could be: they are not in pieces."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return False
        trainer._save(str(folder))
        return True


def load_rows(folder: Path) -> tuple[int, list[TokenizedGroup]]:
    """The step and the groups that were kept."""
    record = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return record["step"], [_group(values) for values in record["groups"]]


def check_action(trainer: Any) -> None:
    """Raises:
    TrainingError: the engine takes the step before anybody can look at it.
    """
    if trainer.guard.action == "skip" and trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise TrainingError("DeepSpeed takes a step before it can be looked at. Set on_nonfinite: stop.")


def _group(values: dict[str, Any]) -> TokenizedGroup:
    tuples = {key: tuple(values[key]) for key in ("scores", "reference")}
    return TokenizedGroup(**{**values, **tuples, "origin": Origin(**values["origin"])})
