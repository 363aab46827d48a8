"""The published settings by name: the files of `training_configs/`, which ship with the package.

A preset's name is its file's in short, SimPO being understood: `llama-3-8b-instruct-simpo-v2.yaml` is
`llama3-instruct-v2`, `mistral-7b-base-dpo.yaml` is `mistral-base-dpo`. The file's own name is understood too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preftune.errors import RecipeError
from preftune.recipe.values import nearest

FOLDER = "training_configs"
_SHORT = (("llama-3-8b", "llama3"), ("mistral-7b", "mistral"), ("gemma-2-9b-it", "gemma"))


@dataclass(frozen=True)
class Preset:
    """One published setting: its name, its file, and what the first lines of the file say it reproduces."""

    name: str
    file: Path
    about: str


def load_presets() -> list[Preset]:
    """All of them, by name; the demo's recipe is none, since it starts from what the demo builds."""
    files = (file for file in _folder().glob("*.yaml") if not file.stem.startswith("demo-"))
    return sorted((Preset(_short(file.stem), file, _about(file)) for file in files), key=lambda preset: preset.name)


def find_preset(name: str) -> Preset:
    """The preset of that name, or of that file name.

    Raises:
        RecipeError: there is none.
    """
    presets = load_presets()
    wanted = name.removesuffix(".yaml")
    for preset in presets:
        if wanted in (preset.name, preset.file.stem):
            return preset
    meant = nearest(wanted, [preset.name for preset in presets])
    raise RecipeError(f"'{name}' is not a preset{meant} `preftune presets` lists them.")


def _folder() -> Path:
    """In a wheel the folder lies inside the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    inside = package / FOLDER
    return inside if inside.is_dir() else package.parent / FOLDER


def _short(stem: str) -> str:
    for long, short in _SHORT:
        stem = stem.replace(long, short)
    return stem if "cpo-simpo" in stem else stem.replace("-simpo", "")


def _about(file: Path) -> str:
    """The first sentence of the comment on top."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    sentence, dot, _ = " ".join(lines).partition("). ")
    return sentence + ")" if dot else " ".join(lines).split(". ")[0] + "."
