"""HTML from parts. Text is escaped unless it was made here, so that a model's output cannot become markup."""

from __future__ import annotations

from html import escape

EMPTY = ("meta",)  # of HTML; an element of SVG is closed, or it would hold all that follow


class Markup(str):
    """Text that is HTML already."""


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """One element. An underscore in an attribute's name stands for a hyphen; class_ and for_ lose theirs."""
    written = "".join(f' {_attribute(key)}="{escape(str(value))}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Markup) else escape(_readable(child)) for child in children)
    return Markup(f"<{name}{written}>" + ("" if name in EMPTY and not children else f"{inside}</{name}>"))


def join(parts: list[Markup]) -> Markup:
    return Markup("\n".join(parts))


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if not key.startswith("view") else key


def _readable(text: str) -> str:
    """Control characters, which HTML does not have, as a mark that is seen."""
    return "".join(char if char in "\t\n" or ord(char) >= 32 else "\ufffd" for char in text)
