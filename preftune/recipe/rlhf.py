"""From the flags of `preftune rlhf` to a recipe: names, documented defaults, and the flags that need a conversion.

    words -> flags (words) -> our keys over the documented defaults -> Recipe (load)

The defaults are those of the published commands and not those of a recipe: SimPO has beta 2.0, gamma 1.0 and an NLL
term of weight 1, DPO has one too; 16 groups a step; 1 % of the rows held out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import RecipeError
from preftune.model.bf16 import auto_dtype
from preftune.objectives import objective_names
from preftune.recipe.compat import OBJECTIVES
from preftune.recipe.conversions import CONVERSIONS, number, said
from preftune.recipe.families import Family, family_of, find_family
from preftune.recipe.flags import BY_NAME, FLAGS, METHODS, Flag
from preftune.recipe.layers import Given, Layer
from preftune.recipe.load import known_keys, resolve
from preftune.recipe.schema import Recipe
from preftune.recipe.training import training_kinds
from preftune.recipe.trl import LOSSES
from preftune.recipe.unsupported import (
    ADAPTER_REASON,
    GENERATION,
    MEANT,
    NO_EFFECT,
    NOT_GENERATED,
    NOT_HERE,
    OTHER_ADAPTERS,
)
from preftune.recipe.values import nearest
from preftune.recipe.words import read_words

log = logging.getLogger(__name__)

DOCUMENTED = "documented default"
TITLES = {"simpo": "SimPO", "reward": "reward model", "slic_hf": "SLiC-HF", "rdpo": "R-DPO", "mixture": "mixture"}


def method_names() -> list[str]:
    """What --rlhf_type may be: the published ones first, then our other objectives."""
    others = set(objective_names()) - set(METHODS) - {"mixture", "reward", "sft"}
    return [*METHODS, *sorted(others)]


def read_flags(words: Sequence[str], method: str | None = None) -> Layer:
    """The flags of a command line by the first of their names; `method` is that of a short verb such as `simpo`.

    Raises:
        RecipeError: a flag is not known, not to be had, or given twice.
    """
    flags: Layer = {}
    written: dict[str, str] = {}
    for name, given in read_words(words).items():
        place = given.place if given.place.startswith("--") else f"{given.place} --{name}"
        given = given._replace(place=place)
        if name in NO_EFFECT:
            log.info("%s has no effect: %s.", place, NO_EFFECT[name])
            continue
        if name in NOT_HERE:
            _refuse_absent(name, given)
            continue
        flag = BY_NAME.get(name)
        _check_known(name, given)
        key = flag.name if flag else name
        if key in flags and flags[key].value != given.value:
            raise RecipeError(f"--{written[key]} {said(flags[key])} and --{name} {said(given)} disagree. Keep one.")
        flags[key], written[key] = _shaped(flag, name, given), name
    if method is not None:
        asked = flags.get("rlhf_type")
        if asked is not None and str(asked.value).lower() != method:
            raise RecipeError(f"--rlhf_type {said(asked)} and the verb '{method}' disagree. Keep one of them.")
        flags["rlhf_type"] = Given(method, "--rlhf_type")
    return flags


def build_recipe(flags: Layer, processes: int = 1) -> Recipe:
    """The recipe of these flags.

    Args:
        flags: as `read_flags` gives them.
        processes: that train; the accumulation that is not given makes 16 groups of a step of theirs.

    Raises:
        RecipeError: a value does not fit, or two flags contradict each other.
    """
    method = _method(flags)
    flags = _without_generation(flags, method)
    _check_only(flags, method)
    family = _family(flags)
    last = _converted(flags, method, family)
    file = {key: Given(value, DOCUMENTED) for key, value in _defaults(flags, last, method, processes).items()}
    return resolve(file, last, "command line", required=_REQUIRED)


# Flags that say who holds the weights, or what is done to the layers; a model is then not spread by itself.
_HELD = ("deepspeed", "fsdp", "quantization_bit", "load_in_4bit", "load_in_8bit", "torch_compile", "use_liger_kernel")


def may_spread(flags: Layer) -> bool:
    """Whether, as published, a model's layers go over all GPUs that a process sees."""
    asked = [name for name in _HELD if name in flags and flags[name].value not in (None, False, 0, "")]
    return not asked and "device_map" not in flags and _method(flags) != "ppo"


_REQUIRED = {
    "model_name_or_path": "Give --model_type NAME or --model_id_or_path FOLDER.",
    "dataset": "Give --dataset NAME, or a file.",
}


def headline(recipe: Recipe, method: str) -> str:
    """What is minimised, in one line: `SimPO + 1.0 NLL; set --cpo_alpha 0 for the paper's SimPO`."""
    title = TITLES.get(recipe.objective, recipe.objective.upper())
    weight = recipe.effective_sft_weight
    if not weight or recipe.objective == "sft":
        return title
    flag = {"simpo": "cpo_alpha", "dpo": "rpo_alpha"}.get(method)
    line = f"{title} + {float(weight)} NLL"
    return f"{line}; set --{flag} 0 for the paper's {title}" if flag else line


# --- flags


def _shaped(flag: Flag | None, name: str, given: Given) -> Given:
    """A list where several values may stand, one value where not, a word where one is needed."""
    if flag is None:
        return given
    if flag.kind is list:
        if given.value is True and given.text is None and given.place.endswith(f"--{name}"):
            raise RecipeError(f"{given.place} has no value. Write --{name} VALUE, or several.")
        values = given.value if isinstance(given.value, (list, dict)) else [given.value]
        _refuse_key(name, values)
        if flag.name in ("dataset", "val_dataset") and isinstance(values, list):
            values = [str(value) for value in values]
        return Given(values, given.place)
    if isinstance(given.value, list) and given.text is None and given.place == f"--{name}":
        raise RecipeError(f"{given.place} takes one value, found {len(given.value)}: {said(given)}. Keep one.")
    if given.value is True and given.text is None and flag.kind is not bool and given.place == f"--{name}":
        raise RecipeError(f"{given.place} has no value. Write --{name} VALUE.")
    return given


def _refuse_key(name: str, values: Sequence[Any] | dict[str, Any]) -> None:
    """`--dataset a.jsonl beta=2`: the way to write a key of `preftune train`."""
    for value in values if isinstance(values, list) else ():
        key, equals, _ = str(value).partition("=")
        if equals and (key in BY_NAME or key in known_keys()) and not Path(str(value)).exists():
            raise RecipeError(f"--{name}: '{value}' is no value of it. Write a flag as --{key} VALUE.")


def _check_known(name: str, given: Given) -> None:
    known = known_keys()
    if name in BY_NAME or name in known:
        return
    meant = f"; did you mean '{MEANT[name]}'?" if name in MEANT else nearest(name, _offered(known))
    meant = meant.replace("'", "'--", 1)
    remedy = "" if meant.endswith("?") else " See preftune rlhf --help."
    place = "command line" if given.place.startswith("--") else given.place.split(" --")[0]
    raise RecipeError(f"{place}: '--{name}' is not a flag{meant}{remedy}")


def _offered(known: Collection[str]) -> list[str]:
    """The flags to look for the meant one among."""
    return [*BY_NAME, *NO_EFFECT, *NOT_HERE, *sorted(known)]


def _refuse_absent(name: str, given: Given) -> None:
    harmless, reason = NOT_HERE[name]
    if given.value in harmless and not (isinstance(given.value, bool) and False not in harmless):
        return
    raise RecipeError(f"{given.place} {said(given)} is not supported: {reason.replace('{types}', ', '.join(METHODS))}.")


def _method(flags: Layer) -> str:
    given = flags.get("rlhf_type", Given(FLAGS["rlhf_type"].default, DOCUMENTED))
    name = str(given.value).lower().replace("-", "_")
    known = method_names()
    if name not in known and name not in ("sft", "reward", *OBJECTIVES):
        meant = nearest(name, [*known, "sft"])
        raise RecipeError(f"{given.place} {given.value} is not known{meant} Accepted are {', '.join(known)}.")
    name = {"reward": "rm", **{k: v for k, v in OBJECTIVES.items() if k != "rm"}}.get(name, name)
    loss = flags.get("loss_type")
    if name == "cpo" and loss is not None and loss.value == ["simpo"]:
        return "simpo"
    return name


def _without_generation(flags: Layer, method: str) -> Layer:
    """Flags of sampling stand in commands for all methods, and act for ppo."""
    if method == "ppo":
        return flags
    for name in GENERATION:
        if name in flags:
            log.info("%s has no effect: %s.", flags[name].place, NOT_GENERATED)
    return {name: given for name, given in flags.items() if name not in GENERATION}


def _check_only(flags: Layer, method: str) -> None:
    """A flag of another method is a mistake."""
    for name, given in flags.items():
        flag = FLAGS.get(name)
        if flag is None or not flag.only or method in flag.only or given.value is None:
            continue
        others = [other.name for other in FLAGS.values() if other.key == flag.key and method in other.only]
        if not others and flag.key == "sft_weight" and method not in ("kto", "rm", "sft"):
            others = ["sft_weight"]
        own = f"for {method} write --{others[0]}" if others else f"--rlhf_type is {method}. Leave it out"
        raise RecipeError(f"{given.place} is a flag of {' and '.join(flag.only)}; {own}.")


def _family(flags: Layer) -> Family | None:
    if "model_type" in flags:
        return find_family(str(flags["model_type"].value), flags["model_type"].place)
    model = flags.get("model_id_or_path")
    return family_of(str(model.value)) if model is not None else None


# --- our keys


def _converted(flags: Layer, method: str, family: Family | None) -> Layer:
    """What the user gave, as recipe keys."""
    layer: Layer = {"objective": Given("reward" if method == "rm" else method, "--rlhf_type")}
    for name, given in flags.items():
        flag = FLAGS.get(name)
        if name in CONVERSIONS:
            found = CONVERSIONS[name](given, flags, family)
        elif flag is None or flag.key is not None:
            found = {name if flag is None else str(flag.key): given}
        else:
            continue
        for key, value in found.items():
            if key in layer and key != "objective" and layer[key].value != value.value:
                one, two = layer[key], value
                raise RecipeError(f"{one.place} {said(one)} and {two.place} {said(two)} disagree. Keep one of them.")
            layer[key] = value
    if family is not None:
        place = "--model_type"
        layer.setdefault("model_name_or_path", Given(family.id, place))
        if family.template is not None and "template_type" not in flags:
            layer.setdefault("chat_template", Given(family.template, place))
        if family.system is not None and "template_type" not in flags:
            layer.setdefault("system_prompt", Given(family.system, place))
    loss = layer.get("loss_type")
    if loss is not None and method == "simpo" and loss.value == ["simpo"]:
        del layer["loss_type"]
    elif loss is not None and method not in LOSSES and len(loss.value) == 1:
        layer["loss_type"] = loss._replace(value=loss.value[0])
    report = layer.get("report_to")
    if report is not None and report.value in (["none"], [None]):
        layer["report_to"] = report._replace(value="none")
    _check_adapter(flags, _sft_type(flags))
    return layer


def _defaults(flags: Layer, last: Layer, method: str, processes: int) -> dict[str, Any]:
    """The documented defaults, for this method and kind of training."""
    sft_type = _sft_type(flags)
    always = {
        name: flag.default
        for name, flag in FLAGS.items()
        if flag.key is not None and flag.default is not None and not flag.only and not flag.key.startswith("lora_")
    }
    found = {FLAGS[name].key or name: value for name, value in always.items()}
    if "activation_checkpointing" in training_kinds():
        found["activation_checkpointing"] = found.pop("gradient_checkpointing")
    found["warmup_steps"] = found.pop("warmup_ratio")  # below 1: a share
    batch = int(number(last.get("per_device_train_batch_size", Given(1, DOCUMENTED)), int))
    every = last.get("eval_steps", Given(50 if sft_type == "lora" else 200, DOCUMENTED)).value
    found |= {
        "output_dir": f"output/{_model_name(flags, last)}-{method}",
        "torch_dtype": None if {"torch_dtype", "bf16", "fp16"} & last.keys() else auto_dtype(),
        "truncation": "drop",
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": math.ceil(16 / max(batch * processes, 1)),
        "learning_rate": 1.0e-4 if sft_type == "lora" else 1.0e-5,
        "save_steps": every,
        **_loss_defaults(method),
        **_held_out(flags, last, every, method),
    }
    if "total_batch_size" in last:
        del found["gradient_accumulation_steps"]
    if sft_type == "lora" and "adapters" not in flags:
        found |= {"use_peft": True, "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
        found["lora_target_modules"] = "DEFAULT"
        family = _family(flags)
        if family is not None and family.modules:
            found["lora_target_modules"] = list(family.modules)
        dropout = last.get("lora_dropout", Given(0.05, DOCUMENTED))
        found["disable_dropout"] = method == "ppo" or not number(dropout, float)
    return {key: value for key, value in found.items() if value is not None}


def _loss_defaults(method: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if method in ("simpo", "dpo", "kto", "cpo", "orpo"):
        found["beta"] = 2.0 if method == "simpo" else 0.1
    if method == "simpo":
        found["simpo_gamma"] = FLAGS["simpo_gamma"].default
    if method in ("simpo", "cpo", "dpo"):
        found |= {"sft_weight": 1.0, "sft_normalization": "token"}
    if method == "kto":
        found |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return found


def _held_out(flags: Layer, last: Layer, every: Any, method: str) -> dict[str, Any]:
    ratio = flags.get("dataset_test_ratio", Given(FLAGS["dataset_test_ratio"].default, DOCUMENTED))
    if "eval_dataset" in last:
        if "dataset_test_ratio" in flags and number(ratio, float):
            log.info("%s has no effect: --val_dataset is what is held out.", ratio.place)
        size = None
    else:
        size = number(ratio, float)
        streams = "streaming" in last and number(last["streaming"], bool)
        if streams and size:
            if "dataset_test_ratio" in flags:
                raise RecipeError(
                    f"{ratio.place} {said(ratio)} takes all rows at once, and --streaming is true. Leave it out, or "
                    "name --val_dataset in its place."
                )
            log.info("Nothing is held out of a stream; --val_dataset names what to evaluate on.")
            size = 0
        if not 0 <= size < 1:
            raise RecipeError(f"{ratio.place} must be at least 0 and below 1, found {said(ratio)}.")
        if not size:
            if "eval_steps" in flags:
                given = flags["eval_steps"]
                why = "nothing is held out of a stream" if streams else "--dataset_test_ratio is 0"
                raise RecipeError(
                    f"{given.place} {said(given)} needs data, but {why}. Name --val_dataset, or leave it out."
                )
            return {}
    best = "objective/scores" if method == "ppo" else "loss"
    return {"test_split_size": size, "eval_strategy": "steps", "eval_steps": every, "metric_for_best_model": best}


def _sft_type(flags: Layer) -> str:
    given = flags.get("sft_type", Given(FLAGS["sft_type"].default, DOCUMENTED))
    name = str(given.value).lower()
    if name in OTHER_ADAPTERS:
        raise RecipeError(f"{given.place} {name} is not supported: {ADAPTER_REASON}.")
    if name not in ("lora", "full"):
        raise RecipeError(f"{given.place} must be lora or full, found {given.value}{nearest(name, ('lora', 'full'))}")
    return name


def _check_adapter(flags: Layer, sft_type: str) -> None:
    adapters = ("lora_target_modules", "lora_rank", "lora_alpha", "lora_dropout", "lora_modules_to_save",
                "init_lora_weights", "use_rslora", "use_dora")  # fmt: skip
    if sft_type == "full":
        for name in (*adapters, "adapters", "quantization_bit"):
            if name in flags and flags[name].value not in (0, False):
                given = flags[name]
                raise RecipeError(
                    f"{given.place} {said(given)} is for adapters, but --sft_type is full. Leave one out."
                )
    elif "freeze_parameters" in flags:
        given = flags["freeze_parameters"]
        raise RecipeError(f"{given.place} is for --sft_type full: beside an adapter all is frozen. Leave one out.")
    if "adapters" in flags:
        for name in adapters:
            if name in flags:
                raise RecipeError(
                    f"{flags[name].place} has no effect: --adapters brings its own settings. Leave it out."
                )


def _model_name(flags: Layer, last: Layer) -> str:
    if "model_type" in flags:
        return str(flags["model_type"].value).lower()
    model = last.get("model_name_or_path")
    return Path(str(model.value)).name if model is not None else "model"
