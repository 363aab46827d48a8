"""Our own designs for gpu.py: the product's step on its roads, and the textbook step, of a model built from a shape.

`packed`  the packed row: one variable-length flash call a layer on a GPU, matrix products on a CPU.
`flex`    the same through FlexAttention.
`padded`  the product's padded road with the fused head.
`naive`   the textbook step: padded, all logits.

Weights are in the type asked for and not autocast, as `torch_dtype: bfloat16` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from padding import pad_pairs
from shapes import Shape
from torch import Tensor, nn
from workload import BETA, GAMMA, LEARNING_RATE, MAX_GRAD_NORM, Pair

Mark = Callable[[str], None]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OPTIMIZERS = ("adamw", "master", "none")
LONGEST = 2048


@dataclass(frozen=True)
class Options:
    """How a design runs.

    tokens: packed tokens of a micro-batch; pairs: pairs of one, for the designs that pad (their per-device batch).
    optimizer: `adamw` in the weights' type, `master` with float32 masters, `none` drops the gradients.
    """

    shape: Shape
    device: torch.device
    precision: str
    optimizer: str
    checkpointing: bool
    tokens: int
    pairs: int


def build_model(options: Options) -> nn.Module:
    """Random weights on the device, the same for every design."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with options.device:
        config = LlamaConfig(**options.shape.config(LONGEST))
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.precision])
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def build_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer | None:
    kwargs: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": 0.0, "fused": True}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **kwargs)
    if options.optimizer == "master":
        from preftune.train.master import MasterAdamW

        return MasterAdamW(model.parameters(), **kwargs)
    return None


class GpuDesign:
    """A model and its optimizer; `backward` is what the designs differ in."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model = build_model(options)
        self.notes: list[str] = []
        self.optimizer = build_optimizer(self.model, options)

    def backward(self, pairs: list[Pair], mark: Mark) -> Tensor:
        """Adds to the gradients of the step and gives its loss, detached; marks the end of each phase."""
        raise NotImplementedError

    def update(self) -> None:
        """Clip, step, drop the gradients."""
        if self.optimizer is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            self.model.zero_grad()


class PackedDesign(GpuDesign):
    """The product's step on one of its roads."""

    def __init__(self, options: Options, road: str) -> None:
        from preftune.model import attention
        from preftune.model.policy import to_policy

        super().__init__(options)
        if road == "flex":
            attention.can_serve = lambda: False
        to_policy(self.model, road="padded" if road == "padded" else "packed")
        if road == "packed" and options.device.type == "cuda" and not attention.can_serve():
            self.notes.append("FlexAttention: no varlen_attn with a scale and a window, nor flash-attn")

    def backward(self, pairs: list[Pair], mark: Mark) -> Tensor:
        from worker_preftune import SIMPO, to_groups

        from preftune.data.plan import Cut
        from preftune.train.step import Packing, build_step, micro_batch_loss, step_counts

        packing = Packing(padded=self.model.road == "padded")
        step = build_step(to_groups(pairs), Cut(max_tokens=self.options.tokens), packing=packing)
        step = step.to(self.options.device)
        counts = step_counts(step)
        total = torch.zeros((), device=self.options.device)
        for batch in step.micro_batches:
            loss, _ = micro_batch_loss(self.model, batch, SIMPO, counts)
            mark("forward")
            loss.backward()
            mark("backward")
            total += loss.detach()
        return total


class PaddedDesign(GpuDesign):
    """Any step over padded micro-batches of a fixed number of pairs: `share` gives one's part of the loss."""

    def backward(self, pairs: list[Pair], mark: Mark) -> Tensor:
        total = torch.zeros((), device=self.options.device)
        for chunk in micro_batches(pairs, self.options.pairs):
            loss = self.share(chunk) * (len(chunk) / len(pairs))
            mark("forward")
            loss.backward()
            mark("backward")
            total += loss.detach()
        return total

    def share(self, pairs: list[Pair]) -> Tensor:
        """The mean loss over these pairs."""
        raise NotImplementedError


class NaiveDesign(PaddedDesign):
    """All logits, float32 log-softmax, gather."""

    def share(self, pairs: list[Pair]) -> Tensor:
        from worker_preftune import response_means

        input_ids, attention_mask, labels = (x.to(self.options.device) for x in pad_pairs(pairs))
        logits = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
        chosen, rejected = response_means(logits, labels).view(2, -1)
        return -F.logsigmoid(BETA * (chosen - rejected) - GAMMA).mean()


def micro_batches(pairs: list[Pair], size: int) -> Iterator[list[Pair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def build(design: str, options: Options) -> GpuDesign:
    return NaiveDesign(options) if design == "naive" else PackedDesign(options, design)
