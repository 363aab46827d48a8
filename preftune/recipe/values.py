"""From what a YAML file or a command line says to the type that a key has: `coerce("5e-7", float)` is 5e-07.

YAML 1.1 reads `5e-7` as text and `no` as false, so both are taken for what their writer meant. Everything else that
does not fit is a `Mismatch`, whose text is what was expected, in words.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable
from enum import Enum
from typing import Any, Literal

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class Mismatch(Exception):
    """A value does not fit; the text says what was expected."""


def nearest(word: object, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the nearest known word, or a full stop."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else "."


def coerce(value: object, kind: Any) -> Any:
    """`value` as the annotation `kind` wants it: bool, int, float, str, list, dict, Enum, Literal, None or a union.

    Raises:
        Mismatch: it does not fit.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, members)
    if origin is Literal:
        return _coerce_choice(value, members)
    if origin in (list, dict):
        return _coerce_list(value, members) if origin is list else _coerce_dict(value, members)
    if kind is Any:
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _coerce_choice(value, [member.value for member in kind])
    if kind in _SIMPLE:
        return _SIMPLE[kind](value)
    raise Mismatch("left out: it cannot be set in a recipe")


def _coerce_union(value: object, members: tuple[Any, ...]) -> Any:
    if value is None and type(None) in members:
        return None
    kinds = [member for member in members if member is not type(None)]
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    if enums:  # `SchedulerType | str` means the name of a scheduler, not any text
        return coerce(value, enums[0])
    expected = []
    for kind in sorted(kinds, key=lambda kind: kind is str):  # text last: it would swallow numbers written as text
        try:
            return coerce(value, kind)
        except Mismatch as mismatch:
            expected.append(str(mismatch))
    nothing = ["null"] if type(None) in members else []
    raise Mismatch(" or ".join(dict.fromkeys(expected + nothing)))


def _coerce_choice(value: object, choices: Iterable[object]) -> object:
    allowed = list(choices)
    if value is False and "no" in allowed:  # YAML 1.1 reads an unquoted `no` as false
        value = "no"
    if any(value is choice or (value == choice and type(value) is type(choice)) for choice in allowed):
        return value
    words = ["null" if choice is None else str(choice) for choice in allowed]
    near = [word for word in words if word.startswith(str(value))] or difflib.get_close_matches(str(value), words)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    several = "a known name" if len(words) > 12 and near else f"one of {', '.join(words)}"
    raise Mismatch(several + meant)


def _coerce_bool(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise Mismatch("true or false")


def _coerce_int(value: object) -> int:
    try:
        number = _coerce_float(value)
    except Mismatch:
        raise Mismatch("a whole number") from None
    if number != int(number):
        raise Mismatch("a whole number")
    return int(number)


def _coerce_float(value: object) -> float:
    number = value
    if isinstance(value, str):
        number = _number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise Mismatch("a number")
    return number


def _number(text: str) -> int | float | None:
    for reader in (int, float):
        try:
            return reader(text)
        except ValueError:
            continue
    return None


def _coerce_str(value: object) -> str:
    if isinstance(value, str):
        return value
    quote = "" if value is None or isinstance(value, (list, dict)) else " (put it in quotes)"
    raise Mismatch(f"text{quote}")


def _coerce_list(value: object, members: tuple[Any, ...] = ()) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Mismatch("a list")
    if not members:
        return list(value)
    try:
        return [coerce(item, members[0]) for item in value]
    except Mismatch as mismatch:
        raise Mismatch(f"a list in which each entry is {mismatch}") from None


def _coerce_dict(value: object, members: tuple[Any, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Mismatch("a mapping (key: value)")
    if any(not isinstance(key, str) for key in value):
        raise Mismatch("a mapping whose keys are text (put them in quotes)")
    kind = members[1] if members else Any
    if kind is Any:
        return {key: _free(item) for key, item in value.items()}
    try:
        return {key: coerce(item, kind) for key, item in value.items()}
    except Mismatch as mismatch:
        raise Mismatch(f"a mapping in which each value is {mismatch}") from None


def _free(value: object) -> object:
    """Values below a mapping have no declared type: there `1e-7` can only have been meant as a number."""
    if isinstance(value, dict):
        return {key: _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


_SIMPLE: dict[Any, Any] = {
    bool: _coerce_bool,
    int: _coerce_int,
    float: _coerce_float,
    str: _coerce_str,
    list: _coerce_list,
    dict: _coerce_dict,
}
