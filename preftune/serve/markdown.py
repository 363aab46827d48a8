"""Text of a model on a terminal: Markdown that is drawn while it comes, and nothing that steers the terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

# Control characters but for tab and line end: an escape sequence in an answer could rewrite what is on the screen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FENCE = re.compile(r"^\s*(```|~~~)", re.M)


def printable(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub("", text)


class MarkdownStream:
    """Draws blocks as soon as they are whole; the block that is still coming stands below them as plain text.

    A context: `with MarkdownStream(console) as stream: stream.write(piece)`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rest = ""
        self.live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> MarkdownStream:
        self.live.start()
        return self

    def write(self, piece: str) -> None:
        self.rest += printable(piece)
        whole, self.rest = whole_blocks(self.rest)
        if whole.strip():
            self.console.print(Markdown(whole))
            self.console.print()
        lines = self.rest.splitlines()[-max(self.console.height - 2, 1) :]  # what no longer fits could not be erased
        self.live.update(Text("\n".join(lines)), refresh=True)

    def __exit__(self, *_: object) -> None:
        self.live.update(Text(""), refresh=True)
        self.live.stop()
        if self.rest.strip():
            self.console.print(Markdown(self.rest))


def whole_blocks(text: str) -> tuple[str, str]:
    """What stands before the last blank line that is in no code block, and the rest."""
    place = text.rfind("\n\n")
    while place != -1:
        if len(_FENCE.findall(text[:place])) % 2 == 0:
            return text[: place + 2], text[place + 2 :]
        place = text.rfind("\n\n", 0, place)
    return "", text
