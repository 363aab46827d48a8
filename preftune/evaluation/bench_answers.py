"""Answers to MT-Bench (two turns) and Arena-Hard (one), as FastChat and arena-hard-auto write them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.evaluation.answers import Candidate, Journal, Preset, mark_of
from preftune.evaluation.files import Rows, write_rows
from preftune.evaluation.mt_bench import asked_turns
from preftune.types import Message

MT_MAX_TOKENS = 1024  # the script's default
MT_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1, "extraction": 0.0, "math": 0.0,
                   "coding": 0.0, "reasoning": 0.0}  # fmt: skip
MT_OTHERWISE = 0.7
ARENA_PRESET = Preset(0.0, 4096)


def answer_mt_bench(
    candidate: Candidate, questions: Rows, output: str | Path, max_new_tokens: int = MT_MAX_TOKENS
) -> Rows:
    """Both turns of all questions, each category at its temperature; the second turn sees the first answer.

    Args:
        questions: with question_id, category and two turns.

    Raises:
        DataError: a question has not two turns, or `output` was begun with other settings.
        ModelError: a conversation does not fit.
    """
    names = _names(questions, "question_id")
    for question in questions:
        asked_turns(question)
    presets = {
        f"{name}/{turn}": Preset(MT_TEMPERATURES.get(question["category"], MT_OTHERWISE), max_new_tokens)
        for name, question in zip(names, questions, strict=True)
        for turn in (1, 2)
    }
    asked = mark_of([[name, q["category"], q["turns"]] for name, q in zip(names, questions, strict=True)])
    journal = Journal(output, candidate.settings() | {"max_new_tokens": max_new_tokens, "prompts": asked})
    talks = {name: [Message("user", question["turns"][0])] for name, question in zip(names, questions, strict=True)}
    for turn in (1, 2):
        candidate.answer({f"{name}/{turn}": talk for name, talk in talks.items()}, presets, journal)
        for name, question in zip(names, questions, strict=True):
            said = Message("assistant", journal.found[f"{name}/{turn}"])
            talks[name] = [*talks[name], said, Message("user", question["turns"][1])]
    rows = [
        {
            "question_id": question["question_id"],
            "answer_id": _id(candidate, name),
            "model_id": candidate.generator,
            "choices": [{"index": 0, "turns": [journal.found[f"{name}/{turn}"] for turn in (1, 2)]}],
            "tstamp": time.time(),
        }
        for name, question in zip(names, questions, strict=True)
    ]
    write_rows(output, rows)
    journal.remove()
    return rows


def answer_arena_hard(candidate: Candidate, questions: Rows, output: str | Path, preset: Preset = ARENA_PRESET) -> Rows:
    """One answer to each question.

    Args:
        questions: with uid and prompt.

    Raises:
        DataError: a prompt is no text, or `output` was begun with other settings.
        ModelError: a prompt does not fit.
    """
    names = _names(questions, "uid")
    for name, question in zip(names, questions, strict=True):
        if not isinstance(question["prompt"], str) or not question["prompt"]:
            raise DataError(f"question {name}: expected 'prompt' to be a text, found {question['prompt']!r}.")
    sampling: dict[str, Any] = {"temperature": preset.temperature, "max_new_tokens": preset.max_new_tokens}
    asked = mark_of([[name, question["prompt"]] for name, question in zip(names, questions, strict=True)])
    journal = Journal(output, candidate.settings() | sampling | {"prompts": asked})
    talks = {name: [Message("user", question["prompt"])] for name, question in zip(names, questions, strict=True)}
    candidate.answer(talks, dict.fromkeys(talks, preset), journal)
    rows = [
        {
            "uid": question["uid"],
            "ans_id": _id(candidate, name),
            "model": candidate.generator,
            "messages": [
                {"role": "user", "content": question["prompt"]},
                {"role": "assistant", "content": {"answer": journal.found[name]}},
            ],
            "tstamp": time.time(),
        }
        for name, question in zip(names, questions, strict=True)
    ]
    write_rows(output, rows)
    journal.remove()
    return rows


def _names(questions: Rows, field: str) -> list[str]:
    names = [str(question[field]) for question in questions]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"questions: {field} {twice!r} is there twice. Keep one of them.")
    return names


def _id(candidate: Candidate, name: str) -> str:
    return hashlib.blake2b(f"{candidate.generator}/{name}/{candidate.seed}".encode(), digest_size=11).hexdigest()
