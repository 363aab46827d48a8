"""Values of options that several verbs take."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def column(text: str) -> tuple[str, str | None]:
    """`NAME=ROLE`; without a role the column is ignored."""
    name, equals, role = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=ROLE such as question=prompt, found {text!r}")
    return name, role or None


def plain_file(text: str) -> str:
    """A file that is written as it stands; one named as if it were packed could not be read again."""
    if text.endswith((".gz", ".zst")):
        raise argparse.ArgumentTypeError(f"the file is written unpacked, found {text!r}. Leave the last ending out")
    return text


def at_least(least: int) -> Callable[[str], int]:
    """A whole number of at least this."""

    def number(text: str) -> int:
        value = int(text) if text.strip().lstrip("+-").isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return value

    return number
