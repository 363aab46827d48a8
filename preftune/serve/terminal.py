"""`preftune chat` on a terminal and in a pipe: one model, or two that answer the same questions.

On a terminal the conversation goes on until `/exit`; what starts with a slash is a command (`HELP`). Where the input is
a file or a pipe, each line is a question of its own, or the whole of it is one, and nothing but the answers is printed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from preftune.errors import PreftuneError
from preftune.serve.chat import Chat, Sampling
from preftune.serve.markdown import MarkdownStream, printable

log = logging.getLogger(__name__)
HELP = """\
/help            this
/reset           forget the conversation
/system TEXT     another system text, from the next question on; /system shows it, /system - leaves it out
/set NAME VALUE  sampling: temperature, top_p, top_k, repetition_penalty, max_tokens, seed; /set shows them
/save FILE       the conversation: .jsonl (a row of data, added at the end), .json or .md (a new file)
/exit            leave, as Ctrl-D does
A question of several lines stands between two lines of \"\"\". Ctrl-C ends an answer.
// at the start asks about a /."""
COMMANDS = ("/help", "/reset", "/system", "/set", "/save", "/exit")
BLOCK = '"""'
WIDE = 100  # columns of a terminal from which two answers stand side by side


class Terminal:
    """Reads questions and commands, and shows the answers of one model or of several.

    Args:
        chats: the conversations; every question goes to each, one after the other. Two stand side by side where
            the terminal is wide enough.
        plain: print answers as they are, not as Markdown.
    """

    def __init__(self, chats: Sequence[Chat], *, plain: bool = False) -> None:
        self.chats = chats
        self.console = Console(highlight=False)
        self.plain = plain or not self.console.is_terminal

    def run(self) -> None:
        """Until `/exit` or the end of the input."""
        for chat in self.chats:
            self.console.print(printable(chat.name), markup=False, style="bold")
        self.console.print("/help says what there is, /exit leaves.", markup=False)
        for text in self._inputs():
            if text.startswith("/") and not text.startswith("//"):
                if text.split()[0] == "/exit":
                    return
                self._say(self._command(text))
            else:
                self._ask(text.removeprefix("/") if text.startswith("//") else text)

    def _inputs(self) -> Iterator[str]:
        """Lines, or several between two lines of triple quotes; Ctrl-C starts the line afresh."""
        with suppress(ImportError):  # a Python without it reads plain lines
            import readline  # noqa: F401, arrow keys, Ctrl-A, Ctrl-R and former lines in input()
        block: list[str] | None = None
        while True:
            try:
                line = input("> " if block is None else "| ")
            except KeyboardInterrupt:
                block = None
                print()
                continue
            except EOFError:
                print()
                return
            if line.strip() == BLOCK:
                block, done = ([], None) if block is None else (None, block)
                line = "\n".join(done or ())
            elif block is not None:
                block.append(line)
                continue
            if text := cleaned(line):
                yield text

    def _ask(self, question: str) -> None:
        if len(self.chats) == 2 and not self.plain and self.console.width >= WIDE:
            self._ask_side_by_side(question)
            return
        for chat in self.chats:
            if len(self.chats) > 1:
                self.console.rule(printable(chat.name), style="dim", align="left")
            try:
                self._answer(chat, question)
            except PreftuneError as error:
                self._say(f"{type(error).__name__}: {error}")

    def _ask_side_by_side(self, question: str) -> None:
        """Two columns: plain text while the answers come, one after the other, and Markdown at the end."""
        texts = ["" for _ in self.chats]
        with Live(console=self.console, transient=True, auto_refresh=False, vertical_overflow="crop") as live:
            for number, chat in enumerate(self.chats):

                def say(piece: str, number: int = number) -> None:
                    texts[number] += printable(piece)
                    live.update(self._columns([Text(self._last_lines(text)) for text in texts]), refresh=True)

                try:
                    chat.ask(question, say)
                except PreftuneError as error:
                    texts[number] = f"{type(error).__name__}: {error}"
        self.console.print(self._columns([Markdown(text) for text in texts]))

    def _columns(self, contents: Sequence[RenderableType]) -> Table:
        table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1))
        for chat in self.chats:
            table.add_column(Text(printable(chat.name)), ratio=1, overflow="fold")
        table.add_row(*contents)
        return table

    def _last_lines(self, text: str) -> str:
        return "\n".join(text.splitlines()[-max(self.console.height - 5, 1) :])

    def _answer(self, chat: Chat, question: str) -> None:
        if self.plain:
            chat.ask(question, lambda piece: print(printable(piece), end="", flush=True))
            print()
            return
        with MarkdownStream(self.console) as stream:
            chat.ask(question, stream.write)

    def _say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, style="dim")

    # --- commands

    def _command(self, line: str) -> str:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word not in COMMANDS:
            return f"{word} is no command. /help lists them; to ask about it, write /{word}"
        if word == "/reset":
            for chat in self.chats:
                chat.reset()
            return "Forgotten."
        if word == "/system":
            return self._system(rest)
        if word == "/set":
            return self._set(rest)
        return save(self.chats, rest) if word == "/save" else HELP

    def _system(self, text: str) -> str:
        if text:
            for chat in self.chats:
                chat.system = None if text == "-" else text
        system = self.chats[0].system
        return f"System text: {system}" if system else "There is no system text."

    def _set(self, rest: str) -> str:
        sampling = self.chats[0].sampling  # all have the same
        if rest:
            name, _, value = rest.partition(" ")
            try:
                set_sampling(sampling, name, value.strip())
            except ValueError as wrong:
                return str(wrong)
        return "  ".join(f"{entry.name} {getattr(sampling, entry.name)}" for entry in fields(Sampling))


def set_sampling(sampling: Sampling, name: str, value: str) -> None:
    """Change one setting by its name.

    Raises:
        ValueError: there is no such setting, or the value is out of its range.
    """
    ranges: dict[str, tuple[type, float, float, str]] = {
        "temperature": (float, 0, 1e6, "a number of at least 0"),
        "top_p": (float, 1e-9, 1, "a number above 0 and up to 1"),
        "top_k": (int, 0, 1e9, "a whole number of at least 0"),
        "repetition_penalty": (float, 1e-9, 1e6, "a number above 0"),
        "max_tokens": (int, 1, 1e9, "a whole number of at least 1"),
        "seed": (int, 0, 2**31, "a whole number of at least 0, or -"),
    }
    if name not in ranges:
        raise ValueError(f"There is no setting '{name}'; the settings are {', '.join(ranges)}.")
    kind, least, most, said = ranges[name]
    number: Any = None
    if not (name == "seed" and value == "-"):
        try:
            number = kind(value)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise ValueError(f"{name} is {said}, found '{value}'.")
    setattr(sampling, name, number)


def save(chats: Sequence[Chat], name: str) -> str:
    """Write the conversations to a file, by the ending of its name; returns what to say."""
    if not name:
        return "/save FILE: give a name that ends with .jsonl, .json or .md."
    path = Path(name).expanduser()
    if path.suffix not in (".jsonl", ".json", ".md"):
        return f"'{path}' ends with '{path.suffix}'; expected .jsonl, .json or .md."
    if not chats[0].turns:
        return "Nothing has been said yet."
    if path.exists() and path.suffix != ".jsonl":
        return f"'{path}' exists already, and is left as it is. Give another name."
    rows = [{"messages": chat.messages(), "model": chat.name} for chat in chats]
    try:
        with path.open("a+" if path.suffix == ".jsonl" else "x", encoding="utf-8") as file:
            file.write(("\n" if _lacks_line_end(path) else "") + _written(rows, path.suffix))
    except OSError as cause:
        return f"'{path}' could not be written: {cause.strerror or cause}."
    return f"Saved in {path}."


def _lacks_line_end(path: Path) -> bool:
    """Whether a row that is added would go on with the last line."""
    data = path.read_bytes()
    return bool(data) and not data.endswith(b"\n")


def _written(rows: list[dict[str, Any]], suffix: str) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if suffix == ".json":
        return json.dumps(rows[0] if len(rows) == 1 else rows, indent=2, ensure_ascii=False) + "\n"
    parts = []
    for row in rows:
        parts.append(f"# {row['model']}")
        parts += [f"**{turn['role']}**\n\n{turn['content']}" for turn in row["messages"]]
    return "\n\n".join(parts) + "\n"


# --- a pipe


def answer_pipe(chats: Sequence[Chat], *, whole: bool = False) -> None:
    """Answer the lines of the standard input, each by itself; `whole`: all of it as one question.

    Of several models each answer follows the model's name and a colon.

    Raises:
        PreftuneError: a question cannot be asked.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # what is no UTF-8 is a question mark, and no traceback
    with _until_nobody_reads():
        for line in [sys.stdin.read()] if whole else sys.stdin:
            if question := cleaned(line):
                for chat in chats:
                    if len(chats) > 1:
                        print(f"{chat.name}: ", end="")
                    _print_answer(chat, question)


def answer_prompt(chat: Chat, question: str) -> None:
    """Answer one question on the standard output.

    Raises:
        PreftuneError: it cannot be asked.
    """
    with _until_nobody_reads():
        _print_answer(chat, cleaned(question))


@contextmanager
def _until_nobody_reads() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read the answers has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_answer(chat: Chat, question: str) -> None:
    """Piece by piece; a terminal gets nothing that steers it."""
    shown = printable if sys.stdout.isatty() else str
    chat.ask(question, lambda piece: print(shown(piece), end="", flush=True))
    print(flush=True)


def cleaned(text: str) -> str:
    """The text without blanks around it, and without half characters, which no tokenizer takes."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")
