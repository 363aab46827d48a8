"""`preftune rlhf`, `preftune sft` and the short verbs (`preftune simpo`): training by flags instead of a recipe."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence

from preftune.cli.launch import asked_processes, has_gpus_left, keep_one_gpu, launch
from preftune.recipe.flags import GROUPS, METHODS, Flag

log = logging.getLogger(__name__)

_USAGE = """usage: preftune {verb} [FLAGS.yaml] --flag VALUE ...

{purpose} The flags are those of the published rlhf commands. A first argument that is a
YAML or JSON file is read as flags. Recipe keys and the fields of transformers.TrainingArguments are flags too.
"""
_EXAMPLES = """
With NPROC_PER_NODE (NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT) in the environment, that many processes train.

examples:
  preftune {example} --model_type llama3-8b-instruct --sft_type full \\
      --dataset shareai-llama3-dpo-zh-en-emoji --learning_rate 1e-6
  NPROC_PER_NODE=2 preftune {example} --model_id_or_path my-model --dataset pairs.jsonl#500 --dry_run true
"""


def main(arguments: Sequence[str], method: str | None = None) -> int:
    """Train by flags, or with `--dry_run true` print the resolved recipe.

    Args:
        method: of a short verb: simpo, dpo, ..., sft.

    Raises:
        PreftuneError: a flag, the data or the model is wrong.
    """
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print(help_text(method), end="")
        return 0
    asked = asked_processes()
    from preftune.recipe.layers import Given
    from preftune.recipe.rlhf import build_recipe, headline, may_spread, read_flags

    flags = read_flags(arguments, method)
    if has_gpus_left() and may_spread(flags):
        flags["device_map"] = Given("auto", "CUDA_VISIBLE_DEVICES")
    elif asked.world == 1 and "device_map" not in flags:
        keep_one_gpu()  # before torch counts them
    dry_run = _is_true(flags.pop("dry_run", None))
    recipe = build_recipe(flags, asked.world)
    name = str(flags["rlhf_type"].value).lower() if "rlhf_type" in flags else "dpo"
    name = "simpo" if recipe.objective == "simpo" else name
    if dry_run:
        from preftune.cli.train import show

        show(recipe, as_json=False, processes=asked.world, title=headline(recipe, name))
        return 0
    if asked.starts:
        from preftune.train.needs import check_packages

        check_packages(recipe)  # once, and not in every process
        return launch(asked, ["rlhf" if method is None else method, *arguments])
    log.info("Effective objective: %s", headline(recipe, name))
    from preftune.cli.train import train_and_print

    return train_and_print(recipe)


def help_text(method: str | None) -> str:
    """The table of flags as a page."""
    verb = method or "rlhf"
    purpose = f"Trains with {verb}." if method else f"Trains on preferences, by default with dpo: {', '.join(METHODS)}."
    lines = [_USAGE.format(verb=verb, purpose=purpose)]
    for group, flags in GROUPS.items():
        shown = [flag for flag in flags if not flag.only or method is None or method in flag.only]
        if not shown:
            continue
        lines += [f"{group}:", *(_line(flag) for flag in shown if not (method and flag.name == "rlhf_type")), ""]
    example = method or "rlhf --rlhf_type simpo"
    example += " --reward_model_id_or_path my-reward-model" if method == "ppo" else ""
    return "\n".join(lines).rstrip() + "\n" + _EXAMPLES.format(example=example)


def _line(flag: Flag) -> str:
    default = "" if flag.default is None else f" [{str(flag.default).lower() if flag.kind is bool else flag.default}]"
    also = f" (also --{', --'.join(flag.also)})" if flag.also else ""
    text = textwrap.wrap(f"{flag.help}{default}{also}", 84)
    return "\n".join(f"  {('--' + flag.name) if not number else '':<31} {part}" for number, part in enumerate(text))


def _is_true(given: object) -> bool:
    from preftune.errors import RecipeError

    value = getattr(given, "value", False)
    if not isinstance(value, bool):
        raise RecipeError(f"--dry_run must be true or false, found {value!r}.")
    return value
