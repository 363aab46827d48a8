"""Flags that are no recipe key as they stand: one function each, from what was given to our keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from preftune.data.named_templates import TEMPLATE_NAMES
from preftune.data.truncate import TRUNCATION_ALIASES
from preftune.errors import RecipeError
from preftune.recipe.families import TEMPLATES, Family, find_family
from preftune.recipe.layers import Given, Layer
from preftune.recipe.values import Mismatch, coerce, nearest


def said(given: Given) -> str:
    """The value as it was written."""
    if given.text is not None:
        return given.text
    if isinstance(given.value, list):
        return " ".join(map(str, given.value))
    return str(given.value).lower() if isinstance(given.value, bool) else str(given.value)


def number(given: Given, kind: type) -> Any:
    """The value as a bool, int or float. Raises RecipeError where it is none."""
    try:
        return coerce(given.value, kind)
    except Mismatch as mismatch:
        raise RecipeError(f"{given.place} must be {mismatch}, found {said(given)}.") from None


def _dtype(given: Given, flags: Layer, family: Family | None) -> Layer:
    if str(given.value).upper() == "AUTO":
        return {}
    return {"torch_dtype": given}


def _template(given: Given, flags: Layer, family: Family | None) -> Layer:
    name = str(given.value)
    if name.upper() == "AUTO":
        template, system = (family.template, family.system) if family else (None, None)
    else:
        template, system = TEMPLATES.get(name.lower(), (name, None))
        if template is not None and not _is_template(template):
            meant = nearest(template, [*TEMPLATES, *TEMPLATE_NAMES])
            raise RecipeError(f"{given.place}: '{name}' is no template's name, file or Jinja text{meant}")
    found = {"chat_template": Given(template, given.place)} if template else {}
    if system and "system" not in flags:
        found["system_prompt"] = Given(system, given.place)
    return found


def _is_template(text: str) -> bool:
    return "{" in text or text in TEMPLATE_NAMES or Path(text).expanduser().is_file()


def _system(given: Given, flags: Layer, family: Family | None) -> Layer:
    text = given.text if given.text is not None else str(given.value)
    path = Path(text) if text.endswith(".txt") else None
    if path is not None:
        if not path.is_file():
            raise RecipeError(f"{given.place}: there is no file '{text}'. Write the text itself, or correct the path.")
        text = path.read_text(encoding="utf-8").strip()
    return {"system_prompt": Given(text or None, given.place)}


def _flash(given: Given, flags: Layer, family: Family | None) -> Layer:
    if "attn_impl" in flags:
        raise RecipeError(f"{given.place} and --attn_impl both choose the attention. Keep one of them.")
    return {"attn_implementation": Given("flash_attention_2" if number(given, bool) else None, given.place)}


def _bits(given: Given, flags: Layer, family: Family | None) -> Layer:
    bits = number(given, int)
    if bits not in (0, 4, 8):
        raise RecipeError(f"{given.place} must be 0, 4 or 8 (bitsandbytes), found {said(given)}.")
    keys = {"load_in_4bit": 4, "load_in_8bit": 8}
    for key, other in keys.items():
        if key in flags and number(flags[key], bool) != (bits == other):
            one, two = f"{given.place} {said(given)}", f"{flags[key].place} {said(flags[key])}"
            raise RecipeError(f"{one} and {two} disagree. Keep one of them.")
    return {key: Given(bits == other, given.place) for key, other in keys.items()}


def _quantiser(given: Given, flags: Layer, family: Family | None) -> Layer:
    if str(given.value).lower() not in ("bnb", "none"):
        raise RecipeError(f"{given.place} {said(given)} is not supported: weights are quantised by bnb. Write bnb.")
    return {}


def _reference(given: Given, flags: Layer, family: Family | None) -> Layer:
    if "ref_model_id_or_path" in flags:
        find_family(str(given.value), given.place)
        return {}
    return {"reference_model_name_or_path": Given(find_family(str(given.value), given.place).id, given.place)}


def _reward(given: Given, flags: Layer, family: Family | None) -> Layer:
    found = find_family(str(given.value), given.place)
    if "reward_model_id_or_path" in flags:  # the folder of a reward model, of that type
        return {}
    return {"reward_model_name_or_path": Given(found.id, given.place)}


def _targets(given: Given, flags: Layer, family: Family | None) -> Layer:
    words = [str(word) for word in given.value]
    upper = [word.upper() for word in words]
    if upper in (["ALL"], ["ALL-LINEAR"]):
        return {"lora_target_modules": Given("ALL", given.place)}
    if upper in (["DEFAULT"], ["AUTO"]):
        modules = list(family.modules) if family is not None and family.modules else "DEFAULT"
        return {"lora_target_modules": Given(modules, given.place)}
    return {"lora_target_modules": Given(words, given.place)}


def _truncation(given: Given, flags: Layer, family: Family | None) -> Layer:
    key = "truncation_strategy" if given.value in TRUNCATION_ALIASES["truncation_strategy"] else "truncation"
    return {key: given}


def _strict(given: Given, flags: Layer, family: Family | None) -> Layer:
    return {"on_bad_row": Given("error" if number(given, bool) else "skip", given.place)}


def _catalog(given: Given, flags: Layer, family: Family | None) -> Layer:
    text = given.text or str(given.value)
    if not Path(text).is_file():
        raise RecipeError(f"{given.place}: there is no file '{text}'. Correct the path.")
    return {"dataset_catalog": Given(text, given.place)}


def _deepspeed(given: Given, flags: Layer, family: Family | None) -> Layer:
    if isinstance(given.value, dict):
        return {"deepspeed": given}
    text = str(given.value)
    if text.lower().endswith(".json"):
        if not Path(text).is_file():
            raise RecipeError(f"{given.place}: there is no file '{text}'. Correct the path.")
        return {"deepspeed": Given(text, given.place)}
    known = yaml.safe_load(Path(__file__).with_name("deepspeed.yaml").read_text(encoding="utf-8"))
    later = text.replace("_", "-")  # zero2, zero3_offload: later names of the same
    text = next((name for name in (text, later, f"default-{later}") if name in known), text)
    if text not in known:
        raise RecipeError(f"{given.place} '{text}' is not known{nearest(text, known)} Or name a .json file.")
    return {"deepspeed": Given(known[text], given.place)}


def _device_map(given: Given, flags: Layer, family: Family | None) -> Layer:
    if isinstance(given.value, dict) or str(given.value) == "auto":
        return {"device_map": given}
    path = Path(given.text or str(given.value)).expanduser()
    if not path.is_file():
        raise RecipeError(f"{given.place}: '{path}' is neither auto nor a JSON file. Correct the path.")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise RecipeError(f"{given.place}: {path} is not JSON ({cause}).") from None
    if not isinstance(read, dict):
        raise RecipeError(f"{given.place}: {path} must hold an object of module names and GPUs.")
    return {"device_map": Given(read, given.place)}


Conversion = Callable[[Given, Layer, Family | None], Layer]
CONVERSIONS: dict[str, Conversion] = {
    "dtype": _dtype,
    "device_map": _device_map,
    "template_type": _template,
    "system": _system,
    "use_flash_attn": _flash,
    "quantization_bit": _bits,
    "quant_method": _quantiser,
    "ref_model_type": _reference,
    "reward_model_type": _reward,
    "lora_target_modules": _targets,
    "truncation_strategy": _truncation,
    "strict": _strict,
    "custom_dataset_info": _catalog,
    "deepspeed": _deepspeed,
}
