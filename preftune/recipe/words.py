"""From the words of a command line to flags: `--flag value`, `--flag=value`, `--flag a b c`, `--flag` alone.

A first word that is a YAML or JSON file is read as flags, which the words after it replace. Goes out: a `Layer` whose
keys are the flags as they were written (dashes inside as underscores), several values as a list, none as true.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preftune.errors import RecipeError
from preftune.recipe.layers import Given, Layer, parse_value, read_file

_LONG_DASHES = ("–", "—", "−", "‐", "‑")
SUFFIXES = (".yaml", ".yml", ".json")


def read_words(words: Sequence[str]) -> Layer:
    """The flags of a command line.

    Raises:
        RecipeError: a word stands where no value belongs, a flag is given twice, or the file is wrong.
    """
    file: Layer = {}
    rest = list(words)
    if rest and rest[0].lower().endswith(SUFFIXES):
        path = rest.pop(0)
        file = {key.replace("-", "_"): given for key, given in read_file(Path(path)).items()}
    given: Layer = {}
    for name, values in _grouped(rest):
        flag = f"--{name}"
        found = Given([parse_value(value) for value in values] if len(values) > 1 else True, flag)
        if len(values) == 1:
            found = Given(parse_value(values[0]), flag, values[0])
        if name in given and given[name] != found:
            raise RecipeError(f"{flag} is given twice ({_said(given[name])} and {_said(found)}). Keep one of them.")
        given[name] = found
    return {**file, **given}


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
        elif word.startswith("-") and not _is_number(word):
            raise RecipeError(f"command line: '{word}' is no flag; flags start with two dashes: -{word}.")
        elif word[0:1] in _LONG_DASHES:
            name = word.lstrip("".join(_LONG_DASHES) + "- ")
            raise RecipeError(f"command line: '{word}' starts with a long dash, as web pages print it. Write --{name}.")
        elif not groups:
            raise RecipeError(f"command line: expected --FLAG VALUE, found '{word}'. Put its flag in front of it.")
        else:
            groups[-1][1].append(word)
    return groups


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _said(given: Given) -> str:
    if given.text is not None:
        return given.text
    return " ".join(map(str, given.value)) if isinstance(given.value, list) else str(given.value).lower()
