"""The recipe of `preftune onpolicy`: which model, which prompts, who scores, and how each round trains.

model_name_or_path: my-sft
prompts: prompts.jsonl                  # whatever train reads; a list of files
eval_prompts: heldout.jsonl             # answered afresh after each round; without it `prompts`
rounds: 2
sample: {max_tokens: 512}               # the options of `preftune sample`
annotate: {reward_model: runs/reward}   # of `preftune annotate`
pairs: {test_share: 0.02}               # of `preftune pairs`
train:                                  # a recipe without model, data and output
  objective: simpo
  learning_rate: 5.0e-7
output_dir: runs/onpolicy
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from preftune.errors import RecipeError
from preftune.recipe.layers import merge, read_file, read_overrides
from preftune.recipe.values import nearest

OWN = frozenset({"model_name_or_path", "dataset", "eval_dataset", "output_dir", "resume_from_checkpoint"})
_FIXED = {"sample": {"output", "json"}, "annotate": {"output", "json"}, "pairs": {"output", "json", "format"}}


@dataclass(frozen=True)
class OnPolicy:
    """What `preftune onpolicy` does. `nproc` processes sample and train; see the module for the rest."""

    model_name_or_path: str
    prompts: tuple[str, ...]
    annotate: Mapping[str, Any]
    train: Mapping[str, Any]
    output_dir: Path
    eval_prompts: tuple[str, ...] = ()
    rounds: int = 1
    nproc: int = 1
    sample: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)


def load_plan(path: str | Path, overrides: list[str]) -> OnPolicy:
    """Read the file; `overrides` are `key=value` or `section.key=value`.

    Raises:
        RecipeError: a key is missing, unknown or of the wrong kind; one line.
    """
    file = Path(path)
    given = {key: found.value for key, found in merge(read_file(file), read_overrides(overrides)).items()}
    known = [one.name for one in fields(OnPolicy)]
    for key in given:
        if key not in known:
            raise RecipeError(f"{file}: '{key}' is not a key of an on-policy recipe{nearest(key, known)}")
    needed = [key for key in ("model_name_or_path", "prompts", "annotate", "train") if not given.get(key)]
    if needed:
        raise RecipeError(f"{file}: '{needed[0]}' is missing. {_NEEDED[needed[0]]}")
    for section in ("sample", "annotate", "pairs", "train"):
        _check_section(file, section, _mapping(file, given, section))
    return OnPolicy(
        model_name_or_path=str(given["model_name_or_path"]),
        prompts=_names(file, given, "prompts"),
        annotate=given["annotate"],
        train=given["train"],
        output_dir=Path(str(given.get("output_dir") or f"runs/{file.stem}")),
        eval_prompts=_names(file, given, "eval_prompts"),
        rounds=_count(file, given, "rounds"),
        nproc=_count(file, given, "nproc"),
        sample=_mapping(file, given, "sample"),
        pairs=_mapping(file, given, "pairs"),
    )


_NEEDED = {
    "model_name_or_path": "Name the model that the first round samples from.",
    "prompts": "Name the files whose prompts are answered.",
    "annotate": "Say who scores, such as annotate: {reward_model: runs/reward}.",
    "train": "Say how a round trains, such as train: {objective: simpo, learning_rate: 5.0e-7}.",
}


def _mapping(file: Path, given: Mapping[str, Any], section: str) -> dict[str, Any]:
    value = given.get(section) or {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{file}: '{section}' must be a map of settings, found {value!r}.")
    return dict(value)


def _check_section(file: Path, section: str, settings: Mapping[str, Any]) -> None:
    taken = sorted((OWN if section == "train" else _FIXED[section]) & {key.replace("-", "_") for key in settings})
    if taken:
        raise RecipeError(f"{file}: '{section}.{taken[0]}' is set by the chain itself. Leave it out.")


def _names(file: Path, given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key) or ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise RecipeError(f"{file}: '{key}' must be a file or a list of files, found {value!r}.")
    return tuple(names)


def _count(file: Path, given: Mapping[str, Any], key: str) -> int:
    value = given.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{file}: '{key}' must be a whole number of at least 1, found {value!r}.")
    return value
