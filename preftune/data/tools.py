"""Tools and tool calls of a row, as the JSON text that the chat template is later given.

In: what a `tools` column or a message's `tool_calls` holds, a list of objects or its JSON text. Out: one JSON text in
one form, so that templates find what they look for:

    tools        [{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}, ...]
    tool_calls   [{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}, ...]

What is written without the outer object is wrapped; arguments that are JSON text become an object, since templates
print them as JSON. A null inside a list of objects means that the key is absent: tables fill in every key that any row
has. Who means a null writes JSON text.
"""

from __future__ import annotations

import json
from typing import Any

FUNCTION = {"type": "function"}


class ToolsError(ValueError):
    """What was found, for a sentence that starts with the place."""


def tools_text(value: object) -> str:
    """The JSON text of a row's tools; "" where there are none.

    Raises:
        ToolsError: it is no list of objects with a name.
    """
    return _to_text([_named(item, f"tool {place}") for place, item in enumerate(_listed(value), 1)])


def calls_text(value: object) -> str:
    """The JSON text of a turn's tool calls; "" where there are none.

    Raises:
        ToolsError: it is no list of objects with a name and arguments.
    """
    calls = [_named(item, f"call {place}") for place, item in enumerate(_listed(value), 1)]
    for place, call in enumerate(calls, 1):
        arguments = call["function"].get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"the arguments of call {place} are")
        if not isinstance(arguments, dict):
            raise ToolsError(f"the arguments of call {place} are no object")
        call["function"] = call["function"] | {"arguments": arguments}
    return _to_text(calls)


def _to_text(items: list[dict[str, Any]]) -> str:
    return json.dumps(items, ensure_ascii=False) if items else ""


def _listed(value: object) -> list[Any]:
    value = _parsed(value, "the text is") if isinstance(value, str) else _without_nulls(value)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ToolsError("it is no list")
    return value


def _parsed(text: str, what: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ToolsError(f"{what} no JSON ({error})") from error


def _named(item: object, where: str) -> dict[str, Any]:
    """{type: function, function: {name, ...}}, from that or from the inner object alone."""
    if isinstance(item, dict) and "function" not in item and "name" in item:
        outer = {"id": item["id"]} if "id" in item else {}
        item = {**outer, **FUNCTION, "function": {key: inner for key, inner in item.items() if key != "id"}}
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ToolsError(f"{where} is no object with a name")
    return FUNCTION | item


def _without_nulls(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
