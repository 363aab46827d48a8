"""What a user gave, before it means anything: the keys of a recipe file, and `key=value` from the command line.

Comes in: a YAML or JSON file, or words of a command line, or a mapping from Python. Goes out: a `Layer`, which is one
`Given` a key, with the place to name in an error. Later layers win over earlier ones.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from preftune.errors import RecipeError

COMMAND_LINE = "command line"


class Given(NamedTuple):
    """A value, where it was given, and on a command line its text."""

    value: Any
    place: str
    text: str | None = None


Layer = dict[str, Given]


class Patch(dict[str, Any]):
    """Nested keys to be merged into what an earlier layer says, from `nested.key=value`."""


def read_file(path: Path) -> Layer:
    """The keys of a recipe file; `.json` is read as JSON, anything else as YAML.

    Raises:
        RecipeError: there is no such file, it is not UTF-8, not valid, empty, not a mapping, or says a key twice.
    """
    place = str(path)
    text = _read_text(path)
    content = _read_json(text, place) if path.suffix.lower() == ".json" else _read_yaml(text, place)
    if content is None:
        raise RecipeError(f"{place}: the file is empty. A recipe needs at least model_name_or_path and dataset.")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else f"{type(content).__name__} {content!r:.40}"
        raise RecipeError(f"{place}: expected a mapping (key: value) at the top, found {kind}.")
    for key in content:
        if not isinstance(key, str):
            raise RecipeError(f"{place}: expected text as a key, found {key!r}. Put it in quotes.")
    return {key: Given(value, place) for key, value in content.items()}


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise RecipeError(f"{path}: expected a recipe file, found a folder. Name the YAML file in it.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start + 1}). Save the file as UTF-8.") from None
    except FileNotFoundError:
        beside = [str(file) for file in path.parent.glob("*") if file.suffix in (".yaml", ".yml", ".json")]
        near = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.85)
        meant = f"; did you mean '{near[0]}'?" if near else "."
        raise RecipeError(f"{path}: there is no such file{meant}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key said twice, which YAML forbids and PyYAML lets pass."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"'{key.value}' is said twice", key.start_mark)
            seen.add(str(key.value))
        return node


def _read_yaml(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(str(error.problem).split())
        remedy = " Indent with spaces." if r"'\t'" in problem else ""
        raise RecipeError(f"{place}{line}: not valid YAML: {problem}.{remedy}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise RecipeError(f"{place}: not valid YAML: {' '.join(str(error).split())}.") from None


def _read_json(text: str, place: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for number, (key, _) in enumerate(pairs):
            if key in dict(pairs[:number]):
                raise RecipeError(f"{place}: not a valid recipe: '{key}' is said twice. Keep one of them.")
        return dict(pairs)

    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{place} line {error.lineno}: not valid JSON: {error.msg}.") from None


def read_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> Layer:
    """`key=value`, `--key=value` and `nested.key=value`, the values read as YAML; or a mapping, taken as it is.

    Raises:
        RecipeError: a word is not of that form.
    """
    layer: Layer = {}
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _put(layer, key, value if isinstance(value, Given) else Given(value, "argument"))
        return layer
    for word in overrides:
        key, text = _split(word)
        _put(layer, key, Given(parse_value(text), COMMAND_LINE, text))
    return layer


def _split(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if key.startswith("--"):
        key = key[2:].replace("-", "_")
    if not equals and word.startswith("-"):
        raise RecipeError(f"{COMMAND_LINE}: '{word}' has no value. Write {key}=VALUE, with '=' and no space.")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{COMMAND_LINE}: expected key=value, found {word!r}. Write for example learning_rate=5e-7.")
    return key, text


def parse_value(text: str) -> Any:
    """A number, bool, null, list or mapping where the text clearly is one, else the text itself."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):  # `run: a` is text, not a mapping
        return text
    return value


def _put(layer: Layer, dotted: str, given: Given) -> None:
    key, *rest = dotted.split(".")
    if not rest:
        layer[key] = given
        return
    before = layer[key].value if key in layer else Patch()
    value = nested = dict(before) if isinstance(before, dict) else {}
    for name in rest[:-1]:
        below = nested.get(name)
        nested[name] = dict(below) if isinstance(below, dict) else {}
        nested = nested[name]
    nested[rest[-1]] = given.value
    layer[key] = Given(Patch(value) if isinstance(before, Patch) else value, given.place)


def merge(first: Layer, second: Layer) -> Layer:
    """Both layers, `second` winning key by key; a `Patch` changes the mapping below it instead of replacing it.

    Raises:
        RecipeError: a nested key is set below something that is not a mapping.
    """
    merged = dict(first)
    for key, given in second.items():
        if isinstance(given.value, Patch):
            below = first[key].value if key in first else None
            if below is not None and not isinstance(below, dict):
                inner = next(iter(given.value))
                raise RecipeError(
                    f"{given.place}: '{key}.{inner}' goes below '{key}', but that is {below!r} in {first[key].place}, "
                    f"not a mapping. Set {key}={{{inner}: ...}} instead."
                )
            given = given._replace(value=_merge_dicts(below or {}, given.value))
        merged[key] = given
    return merged


def _merge_dicts(below: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in patch.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge_dicts(merged[key], value) if nested else value
    return merged
