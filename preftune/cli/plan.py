"""`preftune plan`: what a run takes of each device's memory, what fits, and what to change where it does not."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.values import at_least

if TYPE_CHECKING:
    from preftune.recipe import Recipe
    from preftune.train.memory_plan import EnginePlan, Lengths, MemoryPlan

_EPILOG = """examples:
  preftune plan my.yaml --gpus 4 --gpu-memory 80
  preftune plan my.yaml gradient_checkpointing=true --gpus 8 --gpu-memory 40 --engine zero3
  preftune plan --model meta-llama/Meta-Llama-3-8B-Instruct --gpu-memory 80 objective=dpo use_peft=true
  preftune plan --model my-model --data pairs.jsonl --gpus 2 --gpu-memory 24 --json

No weights are read: the model's config is enough, and of well-known models the name. Every key of a recipe can be given
as key=value. Rows are as long as max_length allows, or with data on this machine as long as they are. Memory is in GiB;
of a GPU 1 GiB is left for CUDA itself.

exit code:
  0  it fits under one of the engines, or no --gpu-memory was given
  1  it fits under none of them
  2  what was asked cannot be understood, or the model is not known
"""
_PLACEHOLDER = "rows-not-given"  # a recipe names its data, and a plan does without
# working: activations, and what backward or the optimizer's step takes besides
_COLUMNS = ("weights", "optimizer", "gradients", "reference", "working", "head", "buffers", "total")


def main(arguments: Sequence[str]) -> int:
    """Plan, and print it; 1 where the run fits nowhere.

    Raises:
        PreftuneError: what was asked cannot be understood.
    """
    options, more = _parser().parse_known_args(arguments)
    recipe = _load_recipe(options, more)
    from preftune.train.memory_plan import find_config, plan_memory

    config, source = find_config(recipe)
    notes = [f"model by {source}"]
    lengths = _lengths(recipe, options, notes)
    limit = options.gpu_memory if options.gpu_memory is not None else _memory_here(options.gpus)
    plan = plan_memory(
        recipe,
        config,
        gpus=options.gpus,
        gpu_memory=limit,
        engine=options.engine,
        lengths=lengths,
        notes=notes,
    )
    if options.json:
        print(json.dumps(plan.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_page(recipe, plan)))
    return 1 if plan.engines and all(one.fits is False for one in plan.engines) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune plan",
        usage="preftune plan RECIPE.yaml [key=value ...] [options]\n"
        "       preftune plan --model M [--data D] [key=value ...] [options]",
        description="What a run takes of each device's memory, under every engine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE | key=value", help="a recipe, and keys of it")
    parser.add_argument("--model", metavar="M", help="folder or hub name of the model")
    parser.add_argument("--data", metavar="D", help="rows whose lengths are taken")
    parser.add_argument("--gpus", type=at_least(0), default=1, metavar="N", help="devices (1); 0: a process on a CPU")
    parser.add_argument("--gpu-memory", type=_gib, metavar="GIB", help="memory of one (that of this machine's, if any)")
    parser.add_argument("--engine", metavar="E", help="one, ddp, fsdp, zero2 or zero3 (all that go with the devices)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser


def _gib(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected GiB above 0, such as 80, found {text!r}")
    return number


def _load_recipe(options: argparse.Namespace, more: Sequence[str]) -> Recipe:
    from preftune.errors import RecipeError
    from preftune.recipe import load_recipe
    from preftune.recipe.compat import ALIASES

    words = [*options.words, *more]
    files = [word for word in words if "=" not in word or Path(word).exists()]
    keys = [word for word in words if word not in files]
    if len(files) > 1:
        raise RecipeError(f"preftune plan: one recipe is expected, found {', '.join(files)}.")
    named = {"model_name_or_path": options.model, "dataset": options.data}
    keys += [f"{key}={value}" for key, value in named.items() if value is not None]
    if not files:
        names = {name: ALIASES.get(name, name) for name in map(_key_of, keys)}
        if not names.keys() & {"model_name_or_path", "model"}:
            raise RecipeError("preftune plan: there is no model. Name a recipe, or --model FOLDER-OR-NAME.")
        if "dataset" not in names.values():
            keys.append(f"dataset={_PLACEHOLDER}")
    return load_recipe(files[0] if files else None, keys)


def _key_of(word: str) -> str:
    """`dataset` of `--dataset.a=0.5`."""
    return word.removeprefix("--").partition("=")[0].partition(".")[0].replace("-", "_")


def _lengths(recipe: Recipe, options: argparse.Namespace, notes: list[str]) -> Lengths | None:
    """Of the rows, where they are on this machine; None: as long as `max_length` allows."""
    from preftune.recipe.follow import is_local

    if recipe.dataset == _PLACEHOLDER or (options.data is None and not is_local(recipe.dataset)):
        if recipe.dataset != _PLACEHOLDER:
            notes.append("the data is not on this machine, so rows are as long as max_length allows")
        return None
    from preftune.train.check import check_data, packing_of
    from preftune.train.memory_plan import measured_lengths
    from preftune.train.tokenizer import load_run_tokenizer

    report = check_data(recipe, *load_run_tokenizer(recipe))
    packing = packing_of(recipe)
    return measured_lengths(recipe, [packing.cost(group) for group in report.groups], max(options.gpus, 1))


def _memory_here(gpus: int) -> float | None:
    import torch

    if gpus and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30
    return None


# --- the page


def _page(recipe: Recipe, plan: MemoryPlan) -> Iterator[str]:
    first = plan.engines[0].memory if plan.engines else None
    device = f"{plan.gpus} GPU{'s' * (plan.gpus != 1)}" if plan.gpus else "a process on a CPU"
    limit = "" if plan.gpu_memory is None else f" of {plan.gpu_memory:g} GiB"
    if first is not None:
        yield f"{recipe.model_name_or_path}: {first.parameters:,} parameters, {first.trainable:,} of them trained"
    yield f"{recipe.objective} on {device}{limit}; longest row {plan.lengths.longest:,} tokens ({plan.lengths.source})"
    yield from (f"  {note}" for note in plan.notes)
    yield ""
    yield f"{'GiB of each device':<18}" + "".join(f"{name:>12}" for name in _COLUMNS) + "  fits  micro-batch"
    for one in plan.engines:
        cells = "".join(f"{value:>12.2f}" for value in _cells(one))
        fits = {True: "yes", False: "no", None: "-"}[one.fits]
        host = f", {one.memory.host:.1f} GiB a process in host memory" if one.memory.host else ""
        layers = f", {one.layers} layers checkpointed" if recipe.checkpoint_layers is not None else ""
        yield f"{one.engine.label:<18}{cells}  {fits:<4}  {one.tokens:,} tokens{layers}{host}"
    yield from (f"{name:<18}cannot run: {reason}" for name, reason in plan.refused.items())
    if any(one.fits is False for one in plan.engines):
        yield ""
        yield from (f"{one.engine.label}: {_remedy(one)}" for one in plan.engines if one.fits is False)


def _cells(one: EnginePlan) -> list[float]:
    memory = one.memory
    return [
        memory.weights + memory.cast_weights,
        memory.master + memory.moments,
        memory.gradients,
        memory.reference,
        memory.activations + memory.workspace,
        memory.head,
        memory.buffers,
        memory.total,
    ]


def _remedy(one: EnginePlan) -> str:
    ways: list[Any] = []
    if one.changes:
        ways.append(f"fits with {shlex.join(one.changes)}")
    if one.gpus:
        ways.append(f"fits as it is on {one.gpus} GPUs")
    return " or ".join(ways) or "does not fit; take another engine, more memory, a smaller model or max_length"
