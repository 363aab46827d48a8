"""A Trainer that runs under the engine that was asked for, with the precision and the reference that belong to it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import Trainer

from preftune.errors import RecipeError
from preftune.model.reference import Reference, Snapshot
from preftune.train.engines import DDP, ONE, asked_engine, check_engine, check_world, settle_precision
from preftune.train.master import MasterAdamW

logger = logging.getLogger(__name__)


class HeldTrainer(Trainer):
    """Checks processes and engine (`preftune.train.engines`), and sets up what depends on who holds the weights."""

    reference: Reference | None = None
    master_weights = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_world(self.accelerator)
        self.engine = asked_engine(self.args)
        self.engine_seen = False

    def _check_engine(self, model: Any) -> None:
        """In the first step, when the model is wrapped."""
        if not self.engine_seen:
            check_engine(self.engine, model)
            self.engine_seen = True

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if isinstance(self.reference, Snapshot):
            self.reference.keep()  # the weights are in the engine's hands now, and no checkpoint has been read
        return super().create_scheduler(num_training_steps, optimizer)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        settle_precision(self.accelerator, self.model, self.args, self.master_weights)
        low = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters() if p.requires_grad)
        if low and self.engine in (ONE, DDP) and self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            if not self.master_weights:
                logger.warning(
                    "Weights are trained in low precision without a float32 master (master_weights: false): at a "
                    "learning rate of %g most of them will not move.",
                    self.args.learning_rate,
                )
            elif issubclass(kind, torch.optim.AdamW):
                self.optimizer_cls_and_kwargs = MasterAdamW, kwargs
            else:
                raise RecipeError(
                    f"optim {self.args.optim!r} cannot keep float32 masters. Use adamw_torch or torch_dtype: float32."
                )
        return super().create_optimizer(model)
