"""An optimizer step reads the device once, before the optimizer moves: up to there the host runs ahead of it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import torch
from transformers import TrainerCallback

from tests.small import build_model
from tests.train.host_reads import HostReads
from tests.train.test_trainer import build_trainer


def tensors_of(value: object) -> list[torch.Tensor]:
    """All tensors in the fields of a dataclass."""
    if isinstance(value, torch.Tensor):
        return [value]
    if not is_dataclass(value):
        return []
    return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))]


class CountReads(TrainerCallback):
    """Of every step, from `training_step` to behind the optimizer and the scheduler."""

    def __init__(self, trainer) -> None:
        self.steps: list[tuple[list[str], list[str]]] = []
        self.model = trainer.model
        prepared = trainer._prepared

        def marking(model, step):
            for batch in (*step.micro_batches, *step.probes, *step.joints):
                self.mode.mark(tensors_of(batch))
            return prepared(model, step)

        trainer._prepared = marking

    def on_step_begin(self, *args, **kwargs):
        self.mode = HostReads([*self.model.parameters(), *self.model.buffers()])
        self.mode.__enter__()

    def on_step_end(self, *args, **kwargs):
        self.mode.__exit__(None, None, None)
        self.steps.append((self.mode.found, self.mode.collectives))


@pytest.mark.parametrize(
    ("dtype", "settings", "changes"),
    [
        (torch.float32, {"objective": "simpo", "sft_weight": 0.3}, {}),
        (torch.float32, {"objective": "dpo"}, {}),
        (torch.float32, {"objective": "aot"}, {}),
        (torch.float32, {"objective": "simpo", "road": "padded"}, {}),
        (torch.float32, {"objective": "simpo"}, {"bf16": True}),
        (torch.float32, {"objective": "simpo"}, {"gradient_checkpointing": True}),
        (torch.float32, {"objective": "simpo"}, {"max_grad_norm": 0.0}),
        (torch.bfloat16, {"objective": "simpo"}, {}),
        (torch.bfloat16, {"objective": "simpo", "master_weights": "split", "optimizer_state": "8bit"}, {}),
    ],
    ids=str,
)
def test_a_step_reads_the_device_once_at_the_optimizers_door(tmp_path, dtype, settings, changes):
    """Forward and backward of all micro-batches, clipping, optimizer, schedule: one read, of whether all is finite."""
    model = build_model("llama", num_hidden_layers=1).to(dtype)
    changes = {"max_steps": 3, "logging_steps": 3, "save_strategy": "no", **changes}
    trainer = build_trainer(tmp_path, model, loss=settings, **changes)
    counted = CountReads(trainer)
    trainer.add_callback(counted)
    trainer.train()
    assert counted.steps == [(["_local_scalar_dense"], [])] * 3


def test_a_read_would_be_counted():
    weight, host = torch.ones(3), torch.ones(3)
    with HostReads([weight]) as mode:
        doubled = weight * 2
        doubled.sum().item()
        doubled[doubled > 1]
        bool((weight > 0).all())
        doubled.tolist()
        host.sum().item()
        host[host > 1]
    assert mode.found[0] == "_local_scalar_dense"
    assert "index" in mode.found or "nonzero" in mode.found
    assert len(mode.found) == 4 and mode.found[-1] == "tolist"
