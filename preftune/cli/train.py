"""`preftune train`: trains by a recipe and prints what came out."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.launch import asked_processes, launch
from preftune.errors import RecipeError

if TYPE_CHECKING:
    from preftune.recipe import Recipe

log = logging.getLogger(__name__)

_EPILOG = """examples:
  preftune train training_configs/demo-simpo.yaml
  preftune train my.yaml beta=2.5 learning_rate=5e-7 --dry-run
  preftune train model_name_or_path=my-model dataset=pairs.jsonl output_dir=runs/first
  preftune train --preset llama3-instruct-v2 --model my-model --data pairs.jsonl total_batch_size=128
  preftune train my.yaml --nproc 2
  preftune train one.yaml --together two.yaml three.yaml

Keys are flat: those of the recipe (model_name_or_path, dataset, max_length, total_batch_size ...), those of the
objective (beta, gamma_beta_ratio ...) and every field of transformers.TrainingArguments (learning_rate ...).
"""

# What a reader wants to see of a summary, in this order, if it is there.
_SHOWN = (
    "objective/scores",
    "objective/kl",
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "nll",
)
_COST = ("train_seconds", "groups_per_second", "tokens_total", "peak_memory_gib")


def main(arguments: Sequence[str]) -> int:
    """Train, or with `--dry-run` print the resolved recipe.

    Raises:
        PreftuneError: the recipe, the data or the model is wrong.
    """
    parser = _parser()
    options, words = parser.parse_known_args(arguments)
    path = options.recipe
    if path is not None and "=" in path and not Path(path).exists():
        path, words = None, [options.recipe, *words]

    from preftune.recipe import load_recipe

    if options.preset is not None:
        from preftune.recipe.presets import find_preset

        if path is not None:
            raise RecipeError(f"'{path}' and --preset {options.preset} are both recipes. Keep one of them.")
        path = find_preset(options.preset).file
    named = {"model_name_or_path": options.model, "dataset": options.data}
    words = [f"{key}={value}" for key, value in named.items() if value is not None] + words
    if path is None and not words:
        parser.error("a RECIPE.yaml, --preset NAME, or keys are required")
    if options.together is not None:
        return _train_together(path, options, words)
    recipe = load_recipe(path, words)
    asked = asked_processes({**os.environ, "NPROC_PER_NODE": options.nproc} if options.nproc else None)
    if asked.starts and not options.dry_run:
        _build_demo_model(recipe)  # once, before there are several processes
        return launch(asked, ["train", *_without_nproc(arguments)])
    return run(recipe, dry_run=options.dry_run, as_json=options.json)


def _train_together(path: str | None, options: argparse.Namespace, words: Sequence[str]) -> int:
    """Train several recipes at once; 0 where all ended well, else the first other exit code."""
    if path is None or words or options.nproc or options.dry_run:
        raise RecipeError("--together takes recipe files alone: preftune train A.yaml --together B.yaml C.yaml.")
    from preftune.recipe import load_recipe
    from preftune.train.together import train_together

    recipes = [load_recipe(one) for one in (path, *options.together)]
    _build_demo_model(recipes[0])
    ends = train_together(recipes)
    if options.json:
        print(json.dumps([asdict(end) for end in ends], indent=2, ensure_ascii=False))
    else:
        for end, recipe in zip(ends, recipes, strict=True):
            if end.summary is not None:
                _print_summary(end.summary, recipe, as_json=False)
            else:
                print(f"{recipe.output_dir}: {end.said}")
    return next((end.code for end in ends if end.code), 0)


def run(recipe: Recipe, *, dry_run: bool, as_json: bool) -> int:
    """Train by a recipe and print what came out, or print the recipe.

    Raises:
        PreftuneError: the data or the model is wrong.
    """
    if dry_run:
        show(recipe, as_json)
        return 0
    return train_and_print(recipe, as_json)


def train_and_print(recipe: Recipe, as_json: bool = False) -> int:
    """Train by a recipe, and print the summary; returns the exit code."""
    _build_demo_model(recipe)
    from preftune.train.run import train_recipe

    summary = train_recipe(recipe)
    if os.environ.get("RANK", "0") == "0":
        _print_summary(summary, recipe, as_json)
    return 0


def _without_nproc(arguments: Sequence[str]) -> list[str]:
    """The words for the processes themselves."""
    kept, words = [], iter(arguments)
    for word in words:
        if word == "--nproc":
            next(words)
        elif not word.startswith("--nproc="):
            kept.append(word)
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune train",
        usage="preftune train RECIPE.yaml|--preset NAME [--model M] [--data D] [key=value ...] [--nproc N] [--dry-run]"
        "\n       preftune train RECIPE.yaml --together RECIPE.yaml ... [--json]",
        description="Train a model by a recipe. key=value, --key=value and nested.key=value win over the file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", nargs="?", help="a YAML or JSON file of flat keys")
    parser.add_argument("--preset", metavar="NAME", help="a published setting, of those that `preftune presets` lists")
    parser.add_argument("--model", metavar="M", help="short for model_name_or_path=M")
    parser.add_argument("--data", metavar="D", help="short for dataset=D")
    parser.add_argument("--nproc", metavar="N", help="start N processes, as NPROC_PER_NODE=N does; of one machine each")
    parser.add_argument(
        "--together", metavar="RECIPE.yaml", nargs="+", help="adapters of these recipes too, over the same base model"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--json", action="store_true", help="print the summary (or the recipe) as JSON")
    return parser


def show(recipe: Recipe, as_json: bool, processes: int | None = None, title: str = "") -> None:
    """A dry run: what the guard rails say, on stderr, and on stdout the resolved recipe as a file that can be run.

    Args:
        processes: that would train; None: those of the launcher that this one is started by.
        title: a comment above the recipe.
    """
    from preftune.train.forewarn import forewarnings

    if os.environ.get("RANK", "0") != "0":
        return
    for line in forewarnings(recipe, processes or int(os.environ.get("WORLD_SIZE", "1"))):
        log.warning(line)
    if title:
        print(f"# {title}")
    _print_recipe(recipe, as_json)


def _print_recipe(recipe: Recipe, as_json: bool) -> None:
    from preftune.recipe import describe_objective

    if as_json:
        print(json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(f"# {describe_objective(recipe)}\n\n{recipe.to_yaml()}", end="")


def _build_demo_model(recipe: Recipe) -> None:
    """The demo's recipe starts from the demo's own SFT model, which is made here where it is absent."""
    from preftune.demo.build import SFT_FOLDER, build_sft

    folder = Path(SFT_FOLDER)
    if Path(recipe.model_name_or_path) == folder and not folder.exists():
        build_sft()


def _print_summary(summary: dict[str, Any], recipe: Recipe, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{recipe.objective}: {recipe.output_dir}", show_header=False, title_justify="left")
    for name, value in _rows(summary):
        table.add_row(name, value)
    Console().print(table)


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    names = [name for prefix in ("", "eval_") for name in (prefix + shown for shown in _SHOWN)]
    flat = {**summary, **(summary.get("metrics") or {})}
    return [(name, f"{flat[name]:.6g}") for name in (*names, *_COST) if isinstance(flat.get(name), (int, float))]
