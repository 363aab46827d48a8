"""Answers of a model to many conversations, each kept in a file as it comes, so that a kill loses nothing.

Prompts are written as in training, one BOS in front. A job that was stopped goes on, and gives what it would have
given: an answer depends on its prompt and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import DataError, ModelError
from preftune.generation import Engine, Request, Sampling
from preftune.lock import open_alone, whole_lines
from preftune.model.ends import ending_ids
from preftune.model.load import load_model, load_tokenizer
from preftune.model.place import weights_mark
from preftune.serve.chat import model_folder, trained_system
from preftune.types import Message

log = logging.getLogger(__name__)
SPOKEN_EVERY = 50  # answers
MARKS = ("prompts", "weights", "template")  # settings that say nothing to a reader


@dataclass(frozen=True)
class Preset:
    """How answers are sampled. stop_ids: beside the template's end of turn and what the model itself names."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


class Candidate:
    """The model that is evaluated; its weights are loaded when the first answer is wanted.

    Args:
        model: a folder (also a run that has only checkpoints) or a hub name.
        generator: its name in the files; None = its folder's.
        slots: answers that are written at the same time.

    Raises:
        ModelError: there is no such model, or its template cannot be used.
    """

    def __init__(self, model: str, generator: str | None = None, *, seed: int = 0, slots: int = 32) -> None:
        folder = Path(model).expanduser()
        self.place = str(model_folder(folder)) if folder.is_dir() else model
        self.generator = generator or Path(model).name
        self.chat: ChatFormat = read_chat_format(load_tokenizer(self.place))
        self.system = trained_system(Path(self.place))
        self.seed, self.slots = seed, slots
        self._engine: Engine | None = None

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, beside prompts and sampling."""
        return {
            "model": self.place,
            "weights": weights_mark(self.place),
            "template": mark_of([self.chat.template]),
            "generator": self.generator,
            "system": self.system,
            "seed": self.seed,
        }

    def prompt_ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The ids of training's prompts.

        Raises:
            ModelError: one has not exactly one BOS, where the tokenizer has one.
        """
        opening = [Message("system", self.system)] if self.system else []
        prompts = self.chat.prompt_ids([[*opening, *messages] for messages in conversations])
        bos = self.chat.bos_id
        for number, ids in enumerate(prompts, 1):
            if bos is not None and (ids[0] != bos or ids[1:2] == [bos]):
                raise ModelError(f"prompt {number}: expected one BOS at its start. Check the chat template.")
        return prompts

    def answer(
        self, conversations: Mapping[str, Sequence[Message]], presets: Mapping[str, Preset], journal: Journal
    ) -> None:
        """Answer those that the journal does not have, and add them to it. Both maps are by the answer's key.

        Raises:
            ModelError: a prompt does not fit into the model's context.
        """
        left = [key for key in conversations if key not in journal.found]
        if not left:
            return
        prompts = dict(zip(left, self.prompt_ids([conversations[key] for key in left]), strict=True))
        engine = self._engine = self._engine or self._load()
        done = len(conversations) - len(left)
        log.info("%d questions, %d are answered already", len(conversations), done)
        requests = [
            Request(key, prompts[key], (self.seed,), self._sampling(engine.model, presets[key])) for key in left
        ]
        for key, _, answer in engine.run(requests):
            ids = answer.ids[:-1] if answer.ended else answer.ids
            text = str(self.chat.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            journal.add(str(key), text)
            done += 1
            if done % SPOKEN_EVERY == 0:
                log.info("%d of %d questions", done, len(conversations))

    def _load(self) -> Engine:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = load_model(self.place, torch_dtype="float32" if device == "cpu" else "auto")
        return Engine(model.to(device).eval(), slots=self.slots)

    def _sampling(self, model: Any, preset: Preset) -> Sampling:
        """Ends: those of training and of the model, and those of the preset that the model has."""
        size = model.config.get_text_config().vocab_size
        named = [end for end in preset.stop_ids if end < size]
        ends = tuple(dict.fromkeys([*ending_ids(model, self.chat), *named]))
        return Sampling(preset.max_new_tokens, preset.temperature, preset.top_p, ends=ends)


class Journal:
    """Answers by key, in OUTPUT.part.jsonl: its first line holds the settings, a torn last line is answered again.

    The file is held until the job ends, so that two processes do not answer for one output.

    Raises:
        DataError: it was begun with other settings, or another process writes it.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, Any]) -> None:
        self.path, self.found = Path(f"{output}.part.jsonl"), dict[str, str]()
        self.file = open_alone(self.path)
        known = json.loads(json.dumps(settings))
        lines = whole_lines(self.file)
        if lines:
            self._read(lines, known)
        else:
            self._write(known)

    def _read(self, lines: list[bytes], known: dict[str, Any]) -> None:
        try:
            before, *items = (dict(json.loads(line)) for line in lines)
            self.found = {str(item["key"]): item["output"] for item in items}
            wrong = not all(isinstance(text, str) for text in self.found.values())
        except (ValueError, KeyError, TypeError, RecursionError):
            wrong = True
        if wrong:
            raise DataError(f"{self.path}: expected kept answers, found something else. Delete the file.")
        changed = next((key for key in {**before, **known} if before.get(key) != known.get(key)), None)
        if changed in MARKS:
            raise DataError(f"{self.path}: was begun with other {changed!r}. Go on with the same, or delete the file.")
        if changed:
            raise DataError(f"{self.path}: was begun with {changed!r} {before.get(changed)!r}, now it is "
                            f"{known.get(changed)!r}. Go on with the same, or delete the file.")  # fmt: skip

    def add(self, key: str, output: str) -> None:
        """Keep an answer, which then survives the end of the process."""
        self.found[key] = output
        self._write({"key": key, "output": output})

    def _write(self, item: Mapping[str, Any]) -> None:
        try:
            self.file.write(json.dumps(item).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}). Make room and go on.") from None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()


def mark_of(questions: Sequence[Any]) -> str:
    """A hash of the questions in their order: a job goes on with the same alone."""
    return hashlib.blake2b(json.dumps(list(questions)).encode(), digest_size=16).hexdigest()


def changed_preset(preset: Preset, max_new_tokens: int | None = None, temperature: float | None = None) -> Preset:
    """The preset with what the user says in its place."""
    changes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    return replace(preset, **{key: value for key, value in changes.items() if value is not None})
