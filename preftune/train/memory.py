"""The memory that a recipe's run takes on one device, from the model's config: `RunMemory(recipe, config)`.

It answers how much a micro-batch of T tokens takes under an engine, and how many tokens fit. The model is made without
weights, as it is trained: with the recipe's adapter, or its frozen parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from preftune.errors import ModelError
from preftune.model.footprint import Engine, Precision
from preftune.model.freeze import freeze
from preftune.model.memory import Counts, MemoryEstimate, build_empty_model, estimate_memory
from preftune.objectives.base import Reads
from preftune.recipe import Recipe
from preftune.train.models import lora_settings

ROUND = 64  # tokens by which a budget is found
ALONE = Engine()


class RunMemory:
    """What a run by `recipe` takes.

    Args:
        recipe: the settings.
        config: of its model.
        counted: what has been counted on this model for recipes like this one; it is added to.
    """

    def __init__(self, recipe: Recipe, config: PretrainedConfig, counted: dict[Any, Counts] | None = None) -> None:
        self.recipe, self.config = recipe, config
        self.precision = precision_of(recipe, config)
        self.counted = {} if counted is None else counted

    @property
    def counts(self) -> Counts:
        """What is counted on the empty model.

        Raises:
            PreftuneError: it cannot be made, or its sizes are not known.
        """
        held = self.precision
        kind = held.weights, held.compute, held.bits, self.recipe.trains_adapter
        if kind not in self.counted:
            self.counted[kind] = self._count()
        return self.counted[kind]

    def _count(self) -> Counts:
        """On a model without weights.

        Raises:
            PreftuneError: it cannot be made, or its sizes are not known.
        """
        scores = self.recipe.build_objective().reads == Reads.SCORES
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # a run's draws stay as they are
            warnings.simplefilter("ignore")  # of PEFT about transformers, which say nothing of memory
            model: Any = build_empty_model(self.config, scores, self.recipe.trust_remote_code, self.precision.weights)
            model = _as_trained(self.recipe, model)
            try:
                return Counts.of(model, self.config, self.precision)
            except AttributeError as cause:
                raise ModelError(f"the config does not say all sizes ({cause})") from cause

    def estimate(
        self, tokens: int, engine: Engine = ALONE, *, several: bool = True, device: str = "cpu"
    ) -> MemoryEstimate:
        """For micro-batches of up to `tokens`; `several`: a step has more than one of them.

        Raises:
            PreftuneError: the model cannot be made, or its sizes are not known.
        """
        return estimate_memory(
            self.counts,
            tokens,
            self.precision,
            reference=live_reference(self.recipe),
            checkpointed=checkpointed(self.recipe, self.counts.kept.layers),
            engine=engine,
            several=several,
            syncs_each=syncs_each_batch(self.recipe),
            device=device,
        )


def fewest_layers(taken: Callable[[int], float], limit: float, layers: int) -> int:
    """The fewest layers with which a run takes no more than `limit`; all where that is still too much."""
    return next((count for count in range(layers) if taken(count) <= limit), layers)


def largest_budget(taken: Callable[[int], float], limit: float, least: int, most: int) -> int | None:
    """The most tokens, from `least` to `most`, that take no more than `limit`; None where none do.

    Args:
        taken: of a number of tokens, growing with it, but that `most` may take less than what is below it: it may be
            the whole step, which then has no gradients of an earlier micro-batch; in the unit of the limit.
    """
    if taken(most) <= limit:
        return most
    if taken(least) > limit:
        return None
    low, high = 0, max(0, (most - least) // ROUND)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if taken(least + middle * ROUND) <= limit else (low, middle - 1)
    return least + low * ROUND


def checkpoints(recipe: Recipe) -> bool:
    """Whether activations are made again in backward."""
    return any(recipe.training.get(f"{what}_checkpointing") for what in ("activation", "gradient"))


def checkpointed(recipe: Recipe, layers: int) -> int:
    """Of so many layers, those that make their activations again; `auto` counts as all, which is the least it takes."""
    if recipe.checkpoint_layers is not None:
        return layers if recipe.checkpoint_layers == "auto" else min(int(recipe.checkpoint_layers), layers)
    return -(-layers // every_n_layers(recipe)) if checkpoints(recipe) else 0


def every_n_layers(recipe: Recipe) -> int:
    """Of transformers' settings of gradient checkpointing."""
    kwargs = [recipe.training.get(f"{what}_checkpointing_kwargs") for what in ("activation", "gradient")]
    return next((int(given.get("every_n_layers", 1)) for given in kwargs if isinstance(given, dict)), 1)


def syncs_each_batch(recipe: Recipe) -> bool:
    """Whether gradients are reduced after every micro-batch, as accelerate's `sync_each_batch` has it."""
    asked = recipe.training.get("accelerator_config")
    kwargs = asked.get("gradient_accumulation_kwargs") if isinstance(asked, dict) else None
    return bool(isinstance(kwargs, dict) and kwargs.get("sync_each_batch"))


def live_reference(recipe: Recipe) -> str:
    """What a live reference keeps: "" nothing (none is needed, it is precomputed, or the adapter is switched off),
    `trained` a copy of what trains, `model` another model."""
    if not recipe.build_objective().needs_reference or recipe.precompute_reference:
        return ""
    if recipe.reference_model_name_or_path is not None:
        return "model"
    fresh = recipe.trains_adapter and recipe.adapter_name_or_path is None
    changes_base = str(recipe.lora_init).lower().startswith(("pissa", "olora"))
    return "" if fresh and not changes_base else "trained"


def precision_of(recipe: Recipe, config: PretrainedConfig) -> Precision:
    """How a run holds its numbers."""
    names = {"bfloat16": torch.bfloat16, "auto": getattr(config, "dtype", None) or torch.float32}
    weights = names.get(recipe.torch_dtype or "", torch.float32)
    weights = torch.float32 if weights == torch.float16 else weights
    half = recipe.training.get("bf16") or recipe.training.get("fp16") or recipe.torch_dtype == "float16"
    bits = 4 if recipe.load_in_4bit else 8 if recipe.load_in_8bit else None
    compute = torch.bfloat16 if half else weights
    optim = str(recipe.training.get("optim", "adamw_torch_fused"))
    return Precision(weights, compute, recipe.master_weights, bits, recipe.optimizer_state, optim)


def _as_trained(recipe: Recipe, model: Any) -> Any:
    """With the recipe's adapter or frozen parts."""
    if recipe.adapter_name_or_path is not None or recipe.use_peft:
        from preftune.model.lora import add_adapter, empty_adapter

        scores = recipe.build_objective().reads == Reads.SCORES
        task = "SEQ_CLS" if scores else "CAUSAL_LM"
        with torch.device("meta"):
            if recipe.adapter_name_or_path is None:
                return add_adapter(model, lora_settings(recipe, init=True), task=task)
            return empty_adapter(model, str(Path(recipe.adapter_name_or_path).expanduser()))
    if recipe.freeze:
        freeze(model, recipe.freeze)
    return model
