"""What a run takes of each device's memory under every engine, what fits, and what to change where it does not.

In: a recipe, the number of GPUs and the memory of one, and how long the rows are. Out: a `MemoryPlan`.

A micro-batch has the recipe's `micro_batch_tokens`, or as many as fit, from the longest row up to what a GPU takes by
default. Where not even the longest row fits, settings are changed one after the other, those that cost least first,
until it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from preftune.errors import ModelError, PreftuneError, RecipeError
from preftune.model.at_hand import folder_at_hand
from preftune.model.footprint import Engine
from preftune.model.memory import RESERVE, MemoryEstimate, load_config
from preftune.model.shapes import published_config
from preftune.objectives.base import Reads
from preftune.recipe import Recipe, resolve_batch
from preftune.train.arguments import default_micro_batch_tokens_of
from preftune.train.memory import (
    RunMemory,
    checkpointed,
    checkpoints,
    fewest_layers,
    largest_budget,
    live_reference,
    syncs_each_batch,
)
from preftune.types import Layout

ENGINES = {"one": "one process", "ddp": "DDP", "fsdp": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
MORE_GPUS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Lengths:
    """Packed tokens. longest: of a row; step: of the fullest optimizer step, on one device. `source` says whence."""

    longest: int
    step: int
    source: str


@dataclass(frozen=True)
class EnginePlan:
    """One engine.

    Args:
        memory: at the micro-batch that is planned.
        tokens: of that micro-batch.
        fits: None where no memory was named.
        layers: decoder layers that make their activations again.
        changes: keys of the recipe (key=value) that make it fit; [] where it does, or where none do.
        gpus: the fewest GPUs on which it fits as it is, where more help.
    """

    engine: Engine
    memory: MemoryEstimate
    tokens: int
    fits: bool | None
    layers: int
    changes: list[str]
    gpus: int | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "engine": self.engine.label,
            "processes": self.engine.ranks,
            "micro_batch_tokens": self.tokens,
            "fits": self.fits,
            "checkpoint_layers": self.layers,
            "changes": self.changes,
            "fits_on_gpus": self.gpus,
            "memory_gib": self.memory.to_dict(),
        }


@dataclass(frozen=True)
class MemoryPlan:
    """All engines. `refused`: engine to the reason why this recipe cannot run under it; notes: what was assumed."""

    gpus: int
    gpu_memory: float | None
    lengths: Lengths
    engines: list[EnginePlan]
    refused: dict[str, str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpus": self.gpus,
            "gpu_memory_gib": self.gpu_memory,
            "reserve_gib": RESERVE if self.gpus else 0.0,
            "lengths": {"longest": self.lengths.longest, "step": self.lengths.step, "source": self.lengths.source},
            "engines": [one.to_dict() for one in self.engines],
            "refused": self.refused,
            "notes": self.notes,
        }


def plan_memory(
    recipe: Recipe,
    config: PretrainedConfig,
    *,
    gpus: int = 1,
    gpu_memory: float | None = None,
    engine: str | None = None,
    lengths: Lengths | None = None,
    notes: list[str] | None = None,
) -> MemoryPlan:
    """Plan a run.

    Args:
        config: of the recipe's model.
        gpus: devices, one process each; 0: one process on a CPU.
        gpu_memory: GiB of one device; None: nothing is held against it.
        engine: one of `ENGINES`; None: all that go with so many devices.
        lengths: of the rows; None: as long as `max_length` allows.
        notes: what the caller has assumed.

    Raises:
        PreftuneError: the model cannot be made, or engine and devices do not go together.
    """
    if recipe.objective == "ppo":
        raise RecipeError(
            "'objective' ppo holds several models at once, and plan counts those of the other objectives."
        )
    lengths = lengths or longest_lengths(recipe, max(gpus, 1))
    said, refused, plans = list(notes or ()), {}, []
    said += _assumed(recipe)
    counted: dict[Any, Any] = {}
    for one in _engines(gpus, engine):
        reason = _refusal(recipe, one)
        if reason is not None:
            refused[one.label] = reason
            continue
        plans.append(_plan(RunMemory(recipe, config, counted), one, lengths, gpu_memory, cuda=gpus > 0))
    if engine is not None and not plans:
        raise RecipeError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    return MemoryPlan(gpus, gpu_memory, lengths, plans, refused, said)


def find_config(recipe: Recipe) -> tuple[PretrainedConfig, str]:
    """The config of the recipe's model, and where it is from: its folder or the cache, its published shape, the hub.

    Raises:
        ModelError: there is none to be had.
    """
    name, revision = recipe.model_name_or_path, recipe.model_revision
    folder = folder_at_hand(name, revision)
    if folder is not None:
        config = load_config(str(folder), trust_remote_code=recipe.trust_remote_code)
        if config is not None:
            return config, "its config"
    config = published_config(name) if folder is None else None
    if config is not None:
        return config, "its published shape"
    config = load_config(name, revision, recipe.trust_remote_code)
    if config is None:
        raise ModelError(
            f"'{name}' has no config.json to be had, and its shape is not known here. Give a folder with a config.json."
        )
    return config, "its config on the hub"


def longest_lengths(recipe: Recipe, ranks: int) -> Lengths:
    """Every row as long as `max_length` allows, and nothing shared."""
    layout = recipe.build_objective().layout
    responses = 2 if layout in (Layout.PAIRED, Layout.RANKED) else 1
    longest = responses * recipe.max_length
    return Lengths(longest, longest * _rows(recipe, ranks), f"every row as long as max_length {recipe.max_length}")


def measured_lengths(recipe: Recipe, costs: list[int], ranks: int) -> Lengths:
    """Of the packed tokens of the rows that there are (data of which none is left is refused where it is read)."""
    rows = sorted(costs)[-_rows(recipe, ranks) :]
    return Lengths(rows[-1], sum(rows), f"{len(costs)} rows, {sum(costs) / len(costs):.0f} tokens on average")


def _rows(recipe: Recipe, ranks: int) -> int:
    """Rows of a step on one device."""
    try:
        return max(1, resolve_batch(recipe, ranks).total // ranks)
    except RecipeError:  # the batch is for another number of devices, as it says when the run starts
        return max(1, (recipe.total_batch_size or ranks) // ranks)


def _assumed(recipe: Recipe) -> Iterator[str]:
    if recipe.training.get("optim", "").startswith("paged"):
        yield f"optim {recipe.training['optim']} may move its state to the host; it is counted on the device"
    if recipe.training.get("optim", "").startswith(("galore", "apollo")):
        yield f"optim {recipe.training['optim']} keeps less than AdamW, as which it is counted"
    if recipe.device_map is not None:
        yield "device_map, layers over several GPUs of a process, is not counted: the figures are of one GPU a process"


def _engines(gpus: int, asked: str | None) -> list[Engine]:
    ranks = max(gpus, 1)
    if gpus == 0:
        found = [Engine()]
    elif gpus == 1:
        found = [Engine(), Engine("ZeRO-2", 1, "optimizer"), Engine("ZeRO-3", 1, "all")]
    else:
        found = [Engine("DDP", ranks), Engine("FSDP2", ranks)]
        found += [Engine("ZeRO-2", ranks), Engine("ZeRO-2", ranks, "optimizer")]
        found += [Engine("ZeRO-3", ranks), Engine("ZeRO-3", ranks, "all")]
    if asked is None:
        return found
    if asked not in ENGINES:
        raise RecipeError(f"--engine {asked}: expected one of {', '.join(ENGINES)}.")
    kept = [one for one in found if one.name == ENGINES[asked]]
    if not kept:
        devices = f"{gpus} GPUs" if gpus > 1 else "one device" if gpus else "a CPU"
        names = ", ".join(dict.fromkeys(key for key, name in ENGINES.items() for one in found if one.name == name))
        raise RecipeError(f"--engine {asked} does not go with {devices}. Choose {names}, or another --gpus.")
    return kept


def _refusal(recipe: Recipe, engine: Engine) -> str | None:
    """Why a run would stop."""
    if engine.alone or engine.name == "DDP":
        return None
    if recipe.master_weights == "split" or recipe.optimizer_state != "float32":
        return "master_weights: split and a small optimizer_state need whole weights on each device"
    if recipe.load_in_4bit or recipe.load_in_8bit:
        return "quantised weights are not cut in pieces"
    if any(recipe.training.get(key) for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")):
        return "torch_compile is for one process or DDP"
    return None


def _plan(run: RunMemory, engine: Engine, lengths: Lengths, limit: float | None, cuda: bool) -> EnginePlan:
    room = None if limit is None else limit - (RESERVE if cuda else 0.0)
    run = _fewest_layers(run, engine, lengths, room, cuda)
    tokens, memory, fits = _settle(run, engine, lengths, room, cuda)
    layers = checkpointed(run.recipe, run.counts.kept.layers)
    if room is None or fits:
        return EnginePlan(engine, memory, tokens, fits, layers, [], None)
    gpus = None
    if engine.ranks > 1 and engine.name != "DDP":
        wider = (replace(engine, ranks=count) for count in MORE_GPUS if count > engine.ranks)
        gpus = next((one.ranks for one in wider if _settle(run, one, lengths, room, cuda)[2]), None)
    return EnginePlan(engine, memory, tokens, False, layers, _changes(run, engine, lengths, room, cuda), gpus)


def _fewest_layers(run: RunMemory, engine: Engine, lengths: Lengths, room: float | None, cuda: bool) -> RunMemory:
    """With `checkpoint_layers: auto`, the run that a start would choose: see `preftune.train.checkpointing`."""
    if run.recipe.checkpoint_layers != "auto" or room is None:
        return run
    tokens, device = _most_tokens(run.recipe, lengths, cuda), "cuda" if cuda else "cpu"

    def with_layers(count: int) -> RunMemory:
        return RunMemory(replace(run.recipe, checkpoint_layers=count), run.config, run.counted)

    def taken(count: int) -> float:
        return with_layers(count).estimate(tokens, engine, several=lengths.step > tokens, device=device).total

    return with_layers(fewest_layers(taken, room, run.counts.kept.layers))


def _most_tokens(recipe: Recipe, lengths: Lengths, cuda: bool) -> int:
    """Of a micro-batch where memory is plenty."""
    usual = recipe.micro_batch_tokens or default_micro_batch_tokens_of("cuda" if cuda else "cpu")
    return max(lengths.longest, min(usual, lengths.step))


def _settle(
    run: RunMemory, engine: Engine, lengths: Lengths, room: float | None, cuda: bool
) -> tuple[int, MemoryEstimate, bool | None]:
    """Tokens of a micro-batch, the memory it takes, and whether it fits."""
    device = "cuda" if cuda else "cpu"

    def estimate(tokens: int) -> MemoryEstimate:
        return run.estimate(tokens, engine, several=lengths.step > tokens, device=device)

    asked = run.recipe.micro_batch_tokens
    most = _most_tokens(run.recipe, lengths, cuda)
    if room is None:
        return most, estimate(most), None
    least = most if asked else min(most, lengths.longest)
    found = largest_budget(lambda tokens: estimate(tokens).total, room, least, most)
    if found is not None:
        return found, estimate(found), True
    nearest = min((least, most), key=lambda tokens: estimate(tokens).total)
    return nearest, estimate(nearest), False


def _changes(run: RunMemory, engine: Engine, lengths: Lengths, room: float, cuda: bool) -> list[str]:
    """Keys that make it fit, those that cost least first, and no more than it takes; [] where they do not suffice."""

    def fits(changed: dict[str, Any]) -> bool | None:
        """None: this model or recipe does not take them."""
        try:
            other = RunMemory(_with(run.recipe, changed), run.config, run.counted)
            return _refusal(other.recipe, engine) is None and bool(_settle(other, engine, lengths, room, cuda)[2])
        except PreftuneError:
            return None

    changed: dict[str, Any] = {}
    for key, value in _levers(run.recipe, engine):
        suffices = fits({**changed, key: value})
        if suffices is None:
            continue
        changed[key] = value
        if suffices:
            for earlier in list(changed)[:-1]:
                rest = {name: kept for name, kept in changed.items() if name != earlier}
                changed = rest if fits(rest) else changed
            return [f"{name}={_word(kept)}" for name, kept in changed.items()]
    return []


def _levers(recipe: Recipe, engine: Engine) -> Iterator[tuple[str, Any]]:
    if recipe.micro_batch_tokens:
        yield "micro_batch_tokens", None
    if isinstance(recipe.checkpoint_layers, int):
        yield "checkpoint_layers", "auto"
    elif recipe.checkpoint_layers is None and not checkpoints(recipe):
        yield "gradient_checkpointing", True
    theirs = recipe.training.get("accelerator_config") or {}
    if engine.name == "FSDP2" and not syncs_each_batch(recipe) and isinstance(theirs, dict):  # else it is a file's name
        steps = {**(theirs.get("gradient_accumulation_kwargs") or {}), "sync_each_batch": True}
        yield "accelerator_config", {**theirs, "gradient_accumulation_kwargs": steps}
    if live_reference(recipe):
        yield "precompute_reference", True
    if not (recipe.training.get("bf16") or recipe.torch_dtype):
        yield "bf16", True
    whole = engine.alone or engine.name == "DDP"
    if whole and not recipe.trains_adapter:
        if recipe.torch_dtype != "bfloat16":
            yield "torch_dtype", "bfloat16"
        if recipe.master_weights is True:
            yield "master_weights", "split"
        if recipe.optimizer_state == "float32":
            yield "optimizer_state", "8bit"
    if not recipe.trains_adapter and recipe.build_objective().reads == Reads.LOGPS:
        yield "use_peft", True
    if recipe.torch_dtype != "bfloat16" and not whole:
        yield "torch_dtype", "bfloat16"
    if whole and not recipe.load_in_4bit:
        yield "load_in_4bit", True


_TRAINING = ("gradient_checkpointing", "bf16", "accelerator_config")  # fields of TrainingArguments


def _with(recipe: Recipe, changed: dict[str, Any]) -> Recipe:
    """The recipe with other values; an adapter does without the settings of whole weights."""
    training = {key: value for key, value in changed.items() if key in _TRAINING}
    own = {key: value for key, value in changed.items() if key not in training}
    if own.get("use_peft"):
        own.update(master_weights=True, optimizer_state="float32")
    return replace(recipe, **own, training={**recipe.training, **training})


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
