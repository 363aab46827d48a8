"""`checkpoint_layers: auto`: as few layers make their activations again as memory asks for.

None, where a micro-batch of the usual size fits into the memory that is free when a run starts; else as many as it
takes, up to all of them, and then micro-batches become smaller (`preftune.train.budget`). How many changes the speed
and never the gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from preftune.errors import PreftuneError
from preftune.model.footprint import Engine
from preftune.model.sharding import own_piece
from preftune.recipe import Recipe
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.budget import GIB, MARGIN, engine_of, free_on_all
from preftune.train.memory import RunMemory, fewest_layers

logger = logging.getLogger(__name__)


def settle_checkpoint_layers(recipe: Recipe, args: Any, model: Any, reference: Any = None) -> Recipe:
    """The recipe with a number in place of `auto`; the same on every process.

    Args:
        args: the run's arguments.
        model, reference: as they are loaded, before an engine holds them.
    """
    if recipe.checkpoint_layers != "auto":
        return recipe
    layers = model.config.get_text_config().num_hidden_layers
    free, device = free_on_all(args.devices), args.device.type
    count = 0
    if free is not None:
        loaded = sum(_bytes_on(part, device) for part in (model, reference) if part is not None) / GIB
        tokens = recipe.micro_batch_tokens or default_micro_batch_tokens(args.device)
        try:
            taken = taken_by(recipe, model.config, tokens, engine_of(args), "cpu" if device == "cpu" else "cuda")
            count = fewest_layers(taken, loaded + MARGIN * free, layers)
        except PreftuneError as error:  # a model that cannot be counted
            logger.debug("All layers are checkpointed: %s", error)
            count = layers
    count = _most_of_all(count, args.device)
    if args.process_index == 0:
        logger.info("checkpoint_layers auto: %d of %d layers make their activations again.", count, layers)
    return replace(recipe, checkpoint_layers=count)


def taken_by(recipe: Recipe, config: Any, tokens: int, engine: Engine, device: str) -> Callable[[int], float]:
    """GiB of a run by the number of layers that are checkpointed."""
    counted: dict[Any, Any] = {}

    def taken(count: int) -> float:
        run = RunMemory(replace(recipe, checkpoint_layers=count), config, counted)
        return run.estimate(tokens, engine, device=device).total

    return taken


def _bytes_on(model: Any, device: str) -> int:
    return sum(piece.nbytes for piece in map(own_piece, model.parameters()) if piece.device.type == device)


def _most_of_all(count: int, device: torch.device) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return count
    shared = torch.tensor([count], device=device if device.type == "cuda" else "cpu")
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())
