"""Answers to the prompts of a file, one each: JSON lines that a killed job goes on with.

    OUT.jsonl.part   line 1: {"settings": {...}}; then one object a row, in the order of the rows
    OUT.jsonl        the same without line 1; it appears under its name when the last row is done

An answer depends on its prompt, the seed and the sampling alone, so a job that was killed and gone on with ends at the
same file, byte for byte on the same machine. A last line that was torn is cut off and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from preftune.data import load_preferences
from preftune.errors import CheckpointError, DataError, Interrupted, ModelError
from preftune.generation import Answer, Engine, Request, Sampling
from preftune.lock import open_alone, whole_lines
from preftune.model.ends import ending_ids
from preftune.model.place import weights_mark
from preftune.serve.chat import Chat
from preftune.types import Message, Origin

log = logging.getLogger(__name__)
AHEAD = 4  # requests that the engine holds, in units of its slots: what is behind a long answer goes on


@dataclass(frozen=True)
class Prompt:
    """messages: with the system text; ids: as the model reads them."""

    messages: list[dict[str, str]]
    ids: list[int]
    origin: Origin


def infer_file(
    chat: Chat,
    source: str | Path,
    target: str | Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    split: str = "train",
    slots: int = 32,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Answer every prompt of `source` into `target`, going on where an earlier job with the same settings stopped.

    Args:
        chat: the model, with the system text and the sampling to use.
        source: rows in any form that prompts can be read from; answers in them are left out.
        target: a file of JSON lines: row, prompt (messages), response, finish (stop or length), tokens.
        columns: the file's names to known ones, see `preftune.data.formats`; None = ignore the column.
        split: which files of a folder.
        slots: answers that are written at the same time.
        overwrite: replace a finished `target`, or what was begun with other settings; with the same it goes on.

    Returns:
        rows, done_before, tokens, cut (answers that reached the limit), output.

    Raises:
        DataError: the file or a row is wrong, or `target` cannot be written.
        ModelError: a prompt is longer than the model's context.
        CheckpointError: `target` is finished, or was begun with other settings.
        Interrupted: by Ctrl-C; what was done is kept.
    """
    target = _checked(Path(target).expanduser(), Path(source).expanduser())
    prompts = read_prompts(chat, source, columns, split)
    journal = _Journal(target, _settings(chat, prompts), len(prompts), overwrite)
    try:
        with journal.writing() as done:
            for number, answer in answers(chat, prompts[done:], slots):
                journal.add(_row(chat, prompts[done + number], answer))
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{journal.done} of {len(prompts)} rows are kept; the same command goes on.") from stop
    return {**journal.finish(), "done_before": done}


def read_prompts(
    chat: Chat, source: str | Path, columns: Mapping[str, str | None] | None = None, split: str = "train"
) -> list[Prompt]:
    """The prompts of a file as the model reads them; the system text goes before those that have none.

    Raises:
        DataError: the file or a row is wrong, or the chat template refuses it.
        ModelError: a prompt is longer than the model's context.
    """
    context = getattr(chat.model.config.get_text_config(), "max_position_embeddings", None)
    found = []
    for example in load_preferences(source, split=split, layout="prompt", columns=dict(columns or {}) or None):
        messages = list(example.prompt)
        if chat.system and messages[0].role != "system":
            messages.insert(0, Message("system", chat.system))
        form = chat.format
        text = form.prompt_text(form.turns(messages), example.origin, form.tool_list(example.tools))
        ids = form.with_bos(form.encode([text])[0])
        if context is not None and len(ids) >= context:
            raise ModelError(f"{example.origin}: the prompt has {len(ids)} tokens, the model reads {context}. Cut it.")
        found.append(Prompt([_said(message) for message in messages], ids, example.origin))
    return found


def answers(chat: Chat, prompts: list[Prompt], slots: int) -> Iterator[tuple[int, Answer]]:
    """(number, answer) in the order of the prompts."""
    engine, drawn = Engine(chat.model, slots=slots), chat.sampling
    sampling = Sampling(
        max_new_tokens=drawn.max_tokens,
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        top_k=drawn.top_k,
        ends=ending_ids(chat.model, chat.format),
    )
    finished: dict[int, Answer] = {}
    submitted = given = 0
    while given < len(prompts):
        while submitted < min(len(prompts), given + AHEAD * slots):
            engine.submit(Request(submitted, prompts[submitted].ids, (drawn.seed or 0,), sampling))
            submitted += 1
        for event in engine.step():
            if event.answer is not None:
                finished[int(event.key)] = event.answer  # type: ignore[call-overload]
        while given in finished:
            yield given, finished.pop(given)
            given += 1


def _row(chat: Chat, prompt: Prompt, answer: Answer) -> dict[str, Any]:
    text = str(chat.format.tokenizer.decode(answer.ids, skip_special_tokens=True)).strip()
    return {
        "row": prompt.origin.row,
        "prompt": prompt.messages,
        "response": text,
        "finish": answer.finish,
        "tokens": len(answer.ids),
    }


def _said(message: Message) -> dict[str, str]:
    return {key: value for key, value in asdict(message).items() if value or key in ("role", "content")}


def _settings(chat: Chat, prompts: list[Prompt]) -> dict[str, Any]:
    """What the answers depend on."""
    digest = hashlib.sha256(json.dumps([prompt.ids for prompt in prompts]).encode()).hexdigest()
    known = {"model": chat.name, "weights": weights_mark(chat.name), "prompts": digest, "rows": len(prompts)}
    return known | asdict(chat.sampling)


def _checked(target: Path, source: Path) -> Path:
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise DataError(f"{target}: is the file that is read. Give another --output.")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise DataError(
            f"{target}: cannot be written there. Give a file in a folder that exists and can be written to."
        )
    return target


class _Journal:
    """The rows of a job that are done; `writing()` gives their number and shows how far the rest is."""

    def __init__(self, target: Path, settings: dict[str, Any], rows: int, overwrite: bool) -> None:
        self.target, self.part = target, target.with_name(target.name + ".part")
        self.header = _line({"settings": json.loads(json.dumps(settings))})
        self.rows, self.done, self.tokens, self.cut = rows, 0, 0, 0
        if target.exists() and not overwrite:
            raise CheckpointError(f"{target}: is finished already. Give another --output, or add --overwrite.")
        self.file = open_alone(self.part)
        try:
            self._open()
        except CheckpointError:
            if not overwrite:
                raise
            self.done = self.tokens = self.cut = 0
            self.file.truncate(0)
            self._open()

    def _open(self) -> None:
        """Read what was done."""
        lines = whole_lines(self.file)
        if not lines:
            self.file.write(self.header)
            self.file.flush()
            return
        if lines[0] != self.header:
            raise CheckpointError(
                f"{self.part}: was begun {_changed(lines[0], self.header)}. Give that again to go on with it, another "
                "--output, or add --overwrite to begin anew."
            )
        for place, line in enumerate(lines[1:], start=2):
            try:
                self._count(json.loads(line))
            except (ValueError, TypeError, KeyError) as cause:
                raise CheckpointError(
                    f"{self.part} line {place}: no row that this job has written. Add --overwrite to begin anew."
                ) from cause
        if self.done:
            log.info("%s: going on after %d of %d rows.", self.part, self.done, self.rows)

    @contextmanager
    def writing(self) -> Iterator[int]:
        console = Console(stderr=True)
        bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        try:
            with bar as self.bar:
                self.task = bar.add_task("answering", total=self.rows, completed=self.done)
                yield self.done
                self.file.flush()
                os.fsync(self.file.fileno())
        except OSError as cause:
            raise DataError(
                f"{self.part}: cannot be written ({cause.strerror or cause}). Make room and go on."
            ) from cause

    def add(self, row: dict[str, Any]) -> None:
        self.file.write(_line(row))
        self.file.flush()  # a kill of the process loses nothing; a power cut at most what the system held
        self._count(row)
        self.bar.update(self.task, completed=self.done)

    def finish(self) -> dict[str, Any]:
        """Put the file under its name.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._name()
        except OSError as cause:
            raise DataError(
                f"{self.target}: cannot be written ({cause.strerror or cause}). Make room and go on."
            ) from None
        return {"rows": self.done, "tokens": self.tokens, "cut": self.cut, "output": str(self.target)}

    def _name(self) -> None:
        whole = self.target.with_name(f".{self.target.name}.whole")
        with whole.open("wb") as file:
            self.file.seek(len(self.header))
            shutil.copyfileobj(self.file, file)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.target)
        self.part.unlink()
        self.file.close()

    def _count(self, row: dict[str, Any]) -> None:
        self.done += 1
        self.tokens += int(row["tokens"])
        self.cut += row["finish"] == "length"


def _changed(before: bytes, now: bytes) -> str:
    """In words, what is not as it was."""
    try:
        then, here = json.loads(before)["settings"], json.loads(now)["settings"]
        names = [key for key in here if then.get(key) != here[key]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "by something else"
    shown = [f"{key} {then.get(key)!r}" if key not in ("prompts", "weights") else f"other {key}" for key in names]
    return f"with {', '.join(shown)}" if shown else "by another release"


def _line(value: dict[str, Any]) -> bytes:
    # backslashreplace: half a surrogate pair, which UTF-8 has no bytes for, becomes its JSON escape
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
