"""A Trainer that runs under the engine that was asked for, with the precision and the reference that belong to it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import Trainer

from preftune.model.reference import Reference, Snapshot
from preftune.train.engines import DDP, ONE, asked_engine, check_engine, check_world, settle_precision
from preftune.train.layers import Compiling, take_compiling
from preftune.train.moments import MomentType
from preftune.train.optimizer import choose_optimizer

logger = logging.getLogger(__name__)


class HeldTrainer(Trainer):
    """Checks processes and engine (`preftune.train.engines`), and sets up what depends on who holds the weights."""

    reference: Reference | None = None
    master_weights: bool | str = True
    optimizer_state: MomentType = "float32"
    compiling: Compiling | None = None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_world(self.accelerator)
        if self.args.spreads:
            self.accelerator.device_placement = False
        self.engine = asked_engine(self.args)
        self.engine_seen = False
        self.compiling = take_compiling(self.accelerator)

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
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            sharded = self.engine not in (ONE, DDP)
            asked = self.master_weights, self.optimizer_state
            self.optimizer_cls_and_kwargs = choose_optimizer(self.model, self.args, *asked, sharded=sharded)
        return super().create_optimizer(model)
