"""What stands in a device's memory for as long as a run lasts, and what an engine adds to it.

In: the numbers of a model (`Sizes`), how they are held (`Precision`), and who holds them (`Engine`). Out: `Held`, in
bytes of one device. N are the processes, c the bytes of the compute type; numbers that train are marked *:

    engine       weights       gradients*        optimizer*                 buffers
    one process  as loaded     4 (2: no master)  master 4 or 2, moments 8   none
    DDP          as loaded     their own type    the same                   gradients once more (reduction buckets)
    FSDP2        4/N           4/N; 4 where a    moments 8/N (the shards    what is outside of layers, 2 layers gathered
                               step has several  are the master)            (c), a layer's gradient (c + 4)
                               micro-batches
    ZeRO-2       c             c/N               master 4/N, moments 8/N    2 buckets of 500 M gradients (c)
    ZeRO-3       c/N           c/N               the same                   up to 1000 M gathered weights (c)

Frozen weights are held in the type they have, and cut as the others are. Under FSDP2 a step of several micro-batches
keeps whole gradients until the last (accelerate's `no_sync`), unless `sync_each_batch` is set. DeepSpeed's step takes a
float32 copy of its gradients. Offloading moves gradients and optimizer, or these and the weights, to the host's memory.
DeepSpeed's buckets are those of its defaults (`reduce_bucket_size`, `stage3_max_live_parameters`). Nothing here was run
on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

BYTES_4BIT = 0.55  # scales included
ZERO_BUCKET, ZERO_LIVE = 500_000_000, 1_000_000_000

# Bytes a parameter of what an optimizer keeps, by `optim`; the others are counted as AdamW, which keeps most.
ADAMW_BYTES = 8.0
MOMENT_BYTES: dict[str, float] = {
    "adamw_8bit": 2 + 2 * 4 / 256,  # bitsandbytes: blocks of 256 numbers with a float32 scale
    "adamw_bnb_8bit": 2 + 2 * 4 / 256,
    "paged_adamw_8bit": 2 + 2 * 4 / 256,
    "adamw_torch_8bit": 2 + 2 * 4 / 256,  # torchao
    "adamw_torch_4bit": 1 + 2 * 4 / 128,
    "lion_32bit": 4,
    "paged_lion_32bit": 4,
    "lion_8bit": 1 + 4 / 256,
    "paged_lion_8bit": 1 + 4 / 256,
    "sgd": 0,
    "adagrad": 4,
    "rmsprop": 4,
    "rmsprop_bnb": 4,
    "rmsprop_bnb_32bit": 4,
    "rmsprop_bnb_8bit": 1 + 4 / 256,
    "ademamix": 12,
    "paged_ademamix_32bit": 12,
    "ademamix_8bit": 3 + 3 * 4 / 256,
    "paged_ademamix_8bit": 3 + 3 * 4 / 256,
    "grokadamw": 12,
}


@dataclass(frozen=True)
class Precision:
    """How numbers are held.

    Args:
        weights: type of the weights; compute: that of the forward pass.
        master: a float32 master of low-precision weights is stepped: a copy (True), or one split into words ("split").
        bits: 4 or 8 for quantised linear layers, else None.
        state: of our optimizer: float32, bfloat16 or 8bit.
        optim: the optimizer's name, as in `TrainingArguments`.
    """

    weights: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    master: bool | str = True
    bits: int | None = None
    state: str = "float32"
    optim: str = "adamw_torch_fused"

    @property
    def master_bytes(self) -> int:
        """Of a trained low-precision weight, beside it; small moments take the master that is split."""
        split = self.master == "split" or self.state != "float32"
        return (2 if split else 4) if self.master else 0

    @property
    def splits(self) -> bool:
        """Whether the step is our own, a part of a tensor at a time."""
        return self.master == "split" or self.state != "float32"

    @property
    def moment_bytes(self) -> float:
        """Of a weight in float32, or with a master."""
        if self.state != "float32":
            return {"bfloat16": 4, "8bit": 2 + 1 / 32}[self.state]
        return MOMENT_BYTES.get(self.optim, ADAMW_BYTES)


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model, as it is trained.

    Args:
        total, trainable: all, and those that get gradients.
        low: those that train in low precision.
        weights: bytes of all weights, as loaded in one process.
        layer: numbers of the largest decoder layer; layer_trained: those of them that train.
        outside: numbers outside of decoder layers: embeddings, head, last norm.
        head, embedding: those of the two matrices; 0 where there is none. heads_trained, embedding_trained: that train.
        tied: whether they are the same.
        largest: the largest weight that trains.
        factored: bytes of Adafactor's row and column sums.
    """

    total: int
    trainable: int
    low: int
    weights: float
    layer: int
    layer_trained: int
    outside: int
    head: int
    head_trained: int
    embedding: int
    embedding_trained: int
    tied: bool
    largest: int
    factored: int

    @classmethod
    def of(cls, model: Any, precision: Precision) -> Sizes:
        """Counted on a model whose weights may be empty."""
        weights = {id(weight): weight for weight in model.parameters()}.values()
        trained = [weight for weight in weights if weight.requires_grad]
        total, trainable = _count(weights), _count(trained)
        low = trainable if precision.weights.itemsize < 4 and not hasattr(model, "peft_config") else 0
        full = trainable - low  # adapters are float32 whatever the precision of the model below them
        layers = [list(layer.parameters()) for layer in _layers(model)]
        largest = max(layers, key=_count, default=[])
        head, embedding = _matrix(model, "get_output_embeddings"), _matrix(model, "get_input_embeddings")
        return cls(
            total=total,
            trainable=trainable,
            low=low,
            weights=_weight_bytes(model, total - full, precision) + full * 4,
            layer=_count(largest),
            layer_trained=_count(weight for weight in largest if weight.requires_grad),
            outside=total - sum(map(_count, layers)),
            head=0 if head is None else head.numel(),
            head_trained=head.numel() if head is not None and head.requires_grad else 0,
            embedding=0 if embedding is None else embedding.numel(),
            embedding_trained=embedding.numel() if embedding is not None and embedding.requires_grad else 0,
            tied=head is not None and head is embedding,
            largest=max((weight.numel() for weight in trained), default=0),
            factored=sum(4 * (sum(weight.shape) if weight.ndim > 1 else weight.numel()) for weight in trained),
        )


@dataclass(frozen=True)
class Engine:
    """Who holds the weights.

    Args:
        name: one process, DDP, FSDP2, ZeRO-2 or ZeRO-3, as `preftune.train.engines` has them.
        ranks: processes, one a device.
        offloads: what lies in the host's memory: nothing, optimizer, or all (optimizer and weights).
    """

    name: str = "one process"
    ranks: int = 1
    offloads: str = ""

    @property
    def alone(self) -> bool:
        return self.name == "one process"

    @property
    def label(self) -> str:
        return f"{self.name} + offload" if self.offloads else self.name

    @property
    def cuts_weights(self) -> bool:
        return self.name in ("FSDP2", "ZeRO-3")


@dataclass(frozen=True)
class Held:
    """Bytes on one device: for good (weights, master, moments, buffers), for a step (gradients, `step` of the
    optimizer), and in the host's memory (`host`, of each process)."""

    weights: float
    gradients: float
    master: float
    moments: float
    buffers: float = 0.0
    step: float = 0.0
    host: float = 0.0


def hold(sizes: Sizes, precision: Precision, engine: Engine, *, several: bool = True, cuda: bool = False) -> Held:
    """What one device holds.

    Args:
        several: gradients of several micro-batches are added up before they are reduced.
        cuda: the device is a GPU, where `optim: adamw_torch` steps all weights at once.
    """
    if engine.alone or engine.name == "DDP":
        return _whole(sizes, precision, engine, cuda)
    return _fsdp2(sizes, precision, engine, several) if engine.name == "FSDP2" else _zero(sizes, precision, engine)


def _whole(sizes: Sizes, precision: Precision, engine: Engine, cuda: bool) -> Held:
    full, low = sizes.trainable - sizes.low, sizes.low
    wide = bool(precision.master) and engine.alone  # in several processes gradients have the type of the buckets
    gradients = full * 4 + low * (4 if wide else 2)
    step = 0.0 if precision.splits or precision.optim == "adamw_torch_fused" else 8.0 * sizes.largest
    if cuda and precision.optim == "adamw_torch" and not precision.splits:
        step = 4.0 * sizes.trainable
    if low and precision.master and not wide and not precision.splits:
        step += 4 * low
    return Held(
        weights=sizes.weights,
        gradients=gradients,
        master=low * precision.master_bytes,
        moments=_moments(sizes, precision),
        buffers=0 if engine.alone else gradients,
        step=step,
    )


def _moments(sizes: Sizes, precision: Precision) -> float:
    if precision.optim == "adafactor":
        return sizes.factored
    bare = 0.5 if not precision.master and precision.optim not in MOMENT_BYTES else 1.0  # in the type of the weights
    full, low = sizes.trainable - sizes.low, sizes.low
    return full * precision.moment_bytes + low * precision.moment_bytes * bare


def _fsdp2(sizes: Sizes, precision: Precision, engine: Engine, several: bool) -> Held:
    size, ranks, trained = precision.compute.itemsize, engine.ranks, sizes.trainable
    raised = 4 - precision.weights.itemsize if sizes.low and precision.master else 0  # shards are made float32
    layer = sizes.layer_trained * (size + 4) + 2 * sizes.layer * size
    return Held(
        weights=(sizes.weights + raised * sizes.low) / ranks,
        gradients=4 * trained * (1 if several and ranks > 1 else 1 / ranks),
        master=0,
        moments=_moments(sizes, replace(precision, master=True)) / ranks,
        buffers=sizes.outside * size + layer,
    )


def _zero(sizes: Sizes, precision: Precision, engine: Engine) -> Held:
    size, ranks, trained = min(precision.compute.itemsize, precision.weights.itemsize), engine.ranks, sizes.trainable
    weights = min(sizes.weights, float(sizes.total * size))
    stage3 = engine.name == "ZeRO-3"
    buffers = size * (min(sizes.total, ZERO_LIVE) if stage3 else 2 * min(trained, ZERO_BUCKET))
    own, taken = weights / ranks if stage3 else weights, size * trained / ranks
    master, moments = 4 * trained / ranks, _moments(sizes, replace(precision, master=True)) / ranks
    step = 4 * trained / ranks
    if not engine.offloads:
        return Held(own, taken, master, moments, buffers, step)
    away = own if engine.offloads == "all" else 0.0  # gradients go to the host as they are reduced
    return Held(own - away, 0, 0, 0, buffers, 0, host=master + moments + step + taken + away)


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _layers(model: Any) -> list[nn.Module]:
    """The decoder layers: the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _matrix(model: Any, getter: str) -> Any:
    found = getattr(model, getter, lambda: None)()
    return getattr(found, "weight", None)


def _weight_bytes(model: Any, numbers: int, precision: Precision) -> float:
    """Bytes of `numbers` weights that are not an adapter's."""
    if precision.bits is None:
        return numbers * precision.weights.itemsize
    held = BYTES_4BIT if precision.bits == 4 else 1.0
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    quantised = min(numbers, sum(module.weight.numel() for module in linear if not module.weight.requires_grad))
    return quantised * held + (numbers - quantised) * precision.weights.itemsize
