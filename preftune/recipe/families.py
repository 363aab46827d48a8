"""The model families that `--model_type` names: id on the hub, chat template, system text, LoRA's default modules.

In: `families.yaml` beside this file, where the keys are explained. Out: a `Family`, found by its name or its id.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from preftune.errors import RecipeError
from preftune.recipe.values import nearest

# Template names of the published commands, by what they are here; those of preftune.data.named_templates stay.
TEMPLATES: dict[str, tuple[str | None, str | None]] = {
    "auto": (None, None),
    "qwen": ("chatml", "You are a helpful assistant."),
    "qwen2_5": ("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "llama": ("mistral", None),
    "llama3_2": ("llama3.2", None),
    "default-generation": ("plain", None),
}


@dataclass(frozen=True)
class Family:
    """A model by its published name; `template` None: the tokenizer's own, `modules` (): found in the model."""

    name: str
    id: str
    template: str | None = None
    system: str | None = None
    modules: tuple[str, ...] = ()


@cache
def families() -> dict[str, Family]:
    """All of them, by name."""
    read = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text(encoding="utf-8"))
    return {name: Family(name, **{**keys, "modules": tuple(keys.get("modules", ()))}) for name, keys in read.items()}


def find_family(name: str, flag: str) -> Family:
    """The family called `name`, whatever the case of the letters.

    Raises:
        RecipeError: there is none; with the nearest name.
    """
    found = families().get(name.lower())
    if found is None:
        meant = nearest(name.lower(), families())
        remedy = "" if meant.endswith("?") else " Leave it out, and give --model_id_or_path (and --template_type)."
        raise RecipeError(f"{flag}: '{name}' is not in the catalogue of models{meant}{remedy}")
    return found


def family_of(model: str) -> Family | None:
    """The family whose id is `model`."""
    return next((family for family in families().values() if family.id.lower() == model.lower()), None)
