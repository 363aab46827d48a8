"""What a run will need of memory on one device, from a model's config: no weights are read or made.

A step is fullest at one of three moments, and the estimate is that of the fullest:

    forward     all activations are there, and the head has a tile of logits
    backward    the same without the tile, and the gradients of the last layer's activations
    optimizer   no activations, and what the optimizer takes for its step

At each stand weights, master, moments, reference and the engine's buffers (`preftune.model.footprint`), and the
gradients that have been made: all of them where a step has several micro-batches. Activations are counted
(`preftune.model.activations`). The head's share is its tile of logits (64 MiB on a CPU, 512 MiB on a GPU), the sweep
over it, the scored states with their gradients, its weight in the compute type and, where an engine watches its weight,
the gradient once more. benchmarks/plan_memory.py holds it against what a process holds.

Left out: what the allocator keeps in reserve, the CUDA context, workspaces of kernels and of NCCL (`RESERVE`, about 1
GiB on a GPU), and what libraries take in the host's memory.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from preftune.errors import ModelError
from preftune.model.activations import Kept, count_kept
from preftune.model.footprint import Engine, Held, Precision, Sizes, hold
from preftune.model.load import checked_place, find_adapter, one_line
from preftune.model.logps import SWEEP_BYTES, TILE_BYTES

GIB = 2**30
RESERVE = 1.0  # GiB of a GPU: context, kernels' workspaces, NCCL
SWEEPS = 3  # float32 tensors of the head's sweep at one time


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB of one device by purpose, at the fullest moment of a step; see the module.

    Args:
        parameters, trainable: numbers of parameters.
        moment: forward, backward or optimizer.
        cast_weights: weights in the compute type, beside those in float32.
        workspace: what backward, or the optimizer's step, takes besides.
        host: GiB that are offloaded to the host's memory; not part of the total.
        token: GiB of a further token of a micro-batch.
    """

    parameters: int
    trainable: int
    moment: str
    weights: float
    cast_weights: float
    gradients: float
    master: float
    moments: float
    reference: float
    activations: float
    workspace: float
    head: float
    buffers: float
    host: float
    token: float

    @property
    def parts(self) -> dict[str, float]:
        """GiB by purpose, without those of nothing."""
        left_out = ("parameters", "trainable", "moment", "host", "token")
        return {name: gib for name, gib in asdict(self).items() if name not in left_out and gib}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Counts:
    """All that an estimate takes from a model: its numbers, and what a pass keeps."""

    sizes: Sizes
    kept: Kept

    @classmethod
    def of(cls, model: nn.Module, config: PretrainedConfig, precision: Precision) -> Counts:
        """Of a model as it is trained: adapters on it, frozen parts without `requires_grad`.

        Args:
            model: on the device `meta`; its weights become fake ones.

        Raises:
            AttributeError: a config of another family, without the sizes that the formula takes.
        """
        sizes = Sizes.of(model, precision)
        return cls(sizes, count_kept(model, config, precision.compute))


def estimate_memory(
    counts: Counts,
    tokens: int,
    precision: Precision,
    *,
    reference: str = "",
    checkpointed: int = 0,
    engine: Engine = Engine(),  # noqa: B008  (frozen)
    several: bool = True,
    syncs_each: bool = False,
    device: str = "cpu",
) -> MemoryEstimate:
    """The estimate for one device.

    Args:
        counts: of the model, held in `precision`.
        tokens: those of the largest micro-batch.
        reference: what a live reference keeps: "" nothing, `trained` a copy of what trains, `model` another model.
        checkpointed: layers whose activations are made again in backward.
        several: a step has several micro-batches.
        syncs_each: gradients are reduced after each of them (`sync_each_batch`), not after the last.
        device: cpu or cuda.
    """
    sizes, kept = counts.sizes, counts.kept
    held = hold(sizes, precision, engine, several=several and not syncs_each, cuda=device == "cuda")
    shares = _moments(sizes, kept, held, tokens, precision, checkpointed, engine, several, device)
    moment = max(shares, key=lambda name: sum(shares[name].values()))
    further = kept.per_token(checkpointed) + kept.layer * BACKWARD + HEAD_STATES * kept.stream
    always = {
        "weights": held.weights,
        "master": held.master,
        "moments": held.moments,
        "reference": _reference_bytes(reference, sizes, precision, engine),
        "buffers": held.buffers,
    }
    empty = dict.fromkeys(("cast_weights", "gradients", "activations", "workspace", "head"), 0.0)
    bytes_of = {**empty, **always, **shares[moment], "host": held.host, "token": further}
    return MemoryEstimate(
        parameters=sizes.total,
        trainable=sizes.trainable,
        moment=moment,
        **{name: number / GIB for name, number in bytes_of.items()},
    )


BACKWARD = 1.0  # gradients of a layer's activations, over what the layer keeps
HEAD_STATES = 3  # the scored states, their gradients, and those spread over the packed row


def _moments(
    sizes: Sizes,
    kept: Kept,
    held: Held,
    tokens: int,
    precision: Precision,
    checkpointed: int,
    engine: Engine,
    several: bool,
    device: str,
) -> dict[str, dict[str, float]]:
    """Bytes beside those that always stand, by moment and purpose."""
    casts = kept.casts if engine.alone or engine.name == "DDP" else 0.0  # engines hold weights in the compute type
    first = min(held.gradients, 4.0 * sizes.head_trained)  # the head's is made in the forward pass
    made = held.gradients if several else first
    inside = {"activations": tokens * kept.per_token(checkpointed), "cast_weights": casts, "gradients": made}
    states = HEAD_STATES * kept.stream * tokens
    straight = 0.0 if engine.alone else 4.0 * sizes.head_trained
    # a gradient of the embedding is whole before it is added to what is there
    added = 4.0 * sizes.embedding_trained if several or sizes.tied else 0.0
    return {
        "forward": {**inside, "head": states + straight + _head_bytes(sizes, precision, device)},
        "backward": {**inside, "head": states + straight, "workspace": tokens * kept.layer * BACKWARD},
        "optimizer": {"gradients": held.gradients, "workspace": max(held.step, added)},
    }


def _head_bytes(sizes: Sizes, precision: Precision, device: str) -> float:
    """A tile, the sweep over it, and the head's weight in the compute type."""
    if not sizes.head:
        return 0.0
    size = precision.compute.itemsize
    cast = size * sizes.head if size < precision.weights.itemsize else 0
    return TILE_BYTES[device] + SWEEPS * SWEEP_BYTES[device] + cast


def _reference_bytes(kind: str, sizes: Sizes, precision: Precision, engine: Engine) -> float:
    if not kind:
        return 0.0
    numbers = sizes.trainable if kind == "trained" else sizes.total
    raised = engine.name == "FSDP2" and sizes.low and precision.master and kind == "trained"
    size = 4 if raised or (kind == "trained" and not sizes.low) else precision.weights.itemsize
    if engine.name.startswith("ZeRO"):
        size = min(size, precision.compute.itemsize)
    host = engine.offloads == "all"
    return 0.0 if host else numbers * size / (engine.ranks if engine.cuts_weights else 1)


def load_config(name: str, revision: str = "main", trust_remote_code: bool = False) -> PretrainedConfig | None:
    """The config of a folder or a hub name, of an adapter's base; None where there is none to be had."""
    try:
        adapter = find_adapter(name, revision)
        place = checked_place(name) if adapter is None else checked_place(adapter.base)
        revision = revision if adapter is None else adapter.base_revision
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None


def build_empty_model(
    config: PretrainedConfig,
    scores: bool = False,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model of this config whose weights take no memory (on the device `meta`).

    Raises:
        ModelError: transformers cannot make one.
    """
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    config = copy.deepcopy(config)
    if scores:
        config.num_labels = 1
    try:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    except Exception as cause:  # model code of any kind runs here
        raise ModelError(f"no model can be built from this config ({one_line(cause)})") from cause
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def embedded_tokens(config: PretrainedConfig) -> int | None:
    """How many tokens a model of this config has an embedding for."""
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None
