"""The pages of the documentation, their fenced blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("the documentation is checked in a checkout", allow_module_level=True)
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])


class Block(NamedTuple):
    """A fenced block: its page, the line of its fence, its language, its text, and the file that it is, if titled."""

    page: str
    line: int
    language: str
    text: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^( *)```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        if match[2] in languages:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[2], textwrap.dedent(match[4]), match[3]))
    return found


def commands(text: str) -> list[list[str]]:
    """The words of every `preftune` command of a shell text, the verb first; `scripts/run_simpo.py` is `run_simpo`."""
    found: list[list[str]] = []
    for line in _own_column(text).replace("\\\n", " ").splitlines():
        line = re.sub(r"(?:^|\s)#(?:\s.*|$)", "", line.replace("[--key=value ...]", ""))  # d.jsonl#500 is no comment
        words = shlex.split(line)
        for number, word in enumerate(words):
            if word == "preftune" and _starts(words, number):
                found.append(_until_the_end(words[number + 1 :]))
            elif word.endswith("scripts/run_simpo.py"):
                found.append(["run_simpo", *_until_the_end(words[number + 1 :])])
            elif " preftune " in word:  # bash -c '...'
                found += commands(word)
    return found


def _own_column(text: str) -> str:
    """Of a block that shows another tool's command to the left, the right half."""
    start = re.match(r"# .* {3}(?=# preftune\n)", text)
    return "\n".join(line[start.end() :] for line in text.splitlines()) if start else text


def _starts(words: list[str], number: int) -> bool:
    before = words[number - 1] if number else ""
    return number == 0 or before in ("|", "&&", ";", "-m") or "=" in before


def _until_the_end(words: list[str]) -> list[str]:
    """Up to a pipe, a redirection or the next command."""
    for number, word in enumerate(words):
        if word in ("|", "&&", ";", ">", "&", "2>"):
            return words[:number]
    return words
