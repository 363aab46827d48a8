"""What a run asks of the decoder layers: compiled, checkpointed one by one, with Liger's kernels, on several devices.

`torch_compile: true`, and accelerate's `--dynamo_backend`: accelerate would compile the whole model, whose batches are
objects and whose attention and head are functions of our own. So what was asked for is taken out of its hands
(`preftune.model.compiled` does it), and refused where compiled layers are not known to be right.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from preftune.errors import RecipeError
from preftune.model.checkpointing import checkpoint_first
from preftune.model.compiled import compile_layers
from preftune.model.liger import check_liger, use_layer_kernels
from preftune.model.spread import even_places, named_places, spread
from preftune.train.arguments import PreferenceArguments, checkpointing_kwargs
from preftune.train.engines import DDP, ONE, asked_engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiling:
    """backend and mode as torch.compile takes them."""

    backend: str
    mode: str | None


def settle_layers(
    policy: Any, args: PreferenceArguments, checkpoint_layers: int | None, compiling: Compiling | None
) -> None:
    """Checkpoint and compile them, in place."""
    if checkpoint_layers is not None:
        args.activation_checkpointing = args.gradient_checkpointing = False  # else the Trainer takes them all
        checkpoint_first(policy, checkpoint_layers, checkpointing_kwargs(args))
    if compiling is not None:
        if args.spreads:
            raise RecipeError("'device_map' and compiled layers do not go together. Leave one of them out.")
        check_compiling(asked_engine(args), policy)
        count = compile_layers(policy, compiling.backend, compiling.mode)
        logger.info("%d decoder layers are compiled (%s) in the first step.", count, compiling.backend)


def place_model(model: Any, args: PreferenceArguments) -> None:
    """On the device of the process, or its layers on several; quantised weights stay where they were loaded.

    Raises:
        RecipeError: the map does not fit the model, its weights, or this machine.
        ModelError: the model has no list of decoder layers.
    """
    quantised = getattr(model, "is_quantized", False)
    if quantised and args.device_map is not None:
        raise RecipeError("'device_map' is not for quantised weights, which stay where they were loaded. Leave it out.")
    if args.device_map is None:
        if not quantised:
            model.to(args.device)
        return
    if args.device_map == "auto":
        places = even_places(model, args.devices)
    else:
        places = named_places(model, args.device_map, args.device)
    if set(places) == {args.device}:
        model.to(args.device)
        return
    spread(model, places, args.device)
    counts = ", ".join(f"{place} ({number})" for place, number in Counter(places).items())
    logger.info("Decoder layers on %s; embeddings and head on %s.", counts, args.device)


def put_liger_in(model: Any, args: PreferenceArguments) -> None:
    """Liger's layer kernels.

    Raises:
        RecipeError: this is no GPU, or an engine holds the weights.
        PreftuneError: Liger is not installed, has none for this model, or they change its states.
    """
    check_liger(args.device.type == "cuda")
    if args.spreads:
        raise RecipeError("'device_map' and Liger's kernels, which run on the first GPU, do not go together.")
    engine = asked_engine(args)
    if engine not in (ONE, DDP):
        raise RecipeError(
            f"'use_liger_kernel' true is for one process or DDP: under {engine} the weights are not on the GPU when "
            "the kernels are held against the model's own layers. Leave it out."
        )
    use_layer_kernels(model, args.liger_kernel_config)


def take_compiling(accelerator: Any) -> Compiling | None:
    """What was asked for, None where nothing was; accelerate compiles nothing afterwards."""
    asked = accelerator.state.dynamo_plugin
    if asked.backend == DynamoBackend.NO:
        return None
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")
    mode = asked.mode if asked.mode != "default" else None
    return Compiling(str(asked.backend.value).lower(), mode)


def check_compiling(engine: str, model: Any) -> None:
    """Refuse where the layers are not plain modules; a recipe that says so itself is refused before.

    Raises:
        RecipeError: an engine gathers their weights while they run, or their weights are quantised.
    """
    if engine not in (ONE, DDP):
        raise RecipeError(
            f"'torch_compile' true is for one process or DDP: {engine} gathers and frees a layer's weights by hooks "
            "while it runs, and compiled layers were not held against plain ones there. Leave it out."
        )
    if getattr(model, "is_quantized", False):
        raise RecipeError(
            "'torch_compile' true is not for quantised weights, whose products are kernels of their own. Leave it out."
        )
