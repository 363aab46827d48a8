"""MT-Bench's judging by rating: answers of two turns in, judgments out, as FastChat's llm_judge writes them.

The judge's prompts are read from FastChat's judge_prompts.jsonl, which is not part of preftune.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from preftune.endpoint import ChatRequest, Endpoint
from preftune.errors import DataError
from preftune.evaluation.files import Rows
from preftune.evaluation.judge import ask_all
from preftune.evaluation.mt_bench import NO_RATING, WITH_REFERENCE, asked_turns, read_rating

log = logging.getLogger(__name__)

MAX_TOKENS = 2048
PROMPT_FIELDS = ("name", "system_prompt", "prompt_template")
QUESTION_FIELDS = ("question_id", "category", "turns")
ANSWER_FIELDS = ("question_id", "model_id", "choices")


@dataclass(frozen=True)
class Judging:
    """What a request is of: the fields of its row that are known before the judge answers, and the request."""

    row: dict[str, Any]
    request: ChatRequest


def build_judgings(questions: Rows, answers: Rows, references: Rows, prompts: Rows) -> list[Judging]:
    """Two requests a question, for the first turn and for the second; with a reference where the category has one.

    Raises:
        DataError: a prompt, an answer or a reference is missing.
    """
    templates = {row["name"]: row for row in prompts}
    given = answered_turns(answers)
    correct = {row["question_id"]: turns_of(row, "references") for row in references}
    found = []
    for model in dict.fromkeys(row["model_id"] for row in answers):
        for turn in (1, 2):
            for question in questions:
                number = question["question_id"]
                if (number, model) not in given:
                    raise DataError(f"answers of {model!r}: question {number} has none. Generate it.")
                found.append(_judging(question, model, turn, given[number, model], correct, templates))
    return found


def _judging(
    question: Mapping[str, Any],
    model: str,
    turn: int,
    answers: list[str],
    references: Mapping[Any, list[str]],
    templates: Mapping[str, Mapping[str, Any]],
) -> Judging:
    number, referenced = question["question_id"], question["category"] in WITH_REFERENCE
    name = f"single-{'math-' if referenced else ''}v1{'-multi-turn' if turn == 2 else ''}"
    if name not in templates:
        raise DataError(
            f"judge prompts: {name!r} is missing; found {', '.join(map(str, templates))}. Give FastChat's file."
        )
    if referenced and number not in references:
        raise DataError(f"references: question {number} ({question['category']}) has none. Give all of them.")
    asked = asked_turns(question)
    fields = {"question": asked[0], "question_1": asked[0], "question_2": asked[1], "answer": answers[0],
              "answer_1": answers[0], "answer_2": answers[1]}  # fmt: skip
    if referenced:
        fields |= {f"ref_answer_{place}": text for place, text in enumerate(references[number], 1)}
    text = filled(name, templates[name]["prompt_template"], fields)
    messages = [
        {"role": "system", "content": templates[name]["system_prompt"]},
        {"role": "user", "content": text},
    ]
    row = {"question_id": number, "model": model, "judge": ["", name], "user_prompt": text, "turn": turn}
    key = f"{model}, question {number}, turn {turn}"
    return Judging(row, ChatRequest(key=key, messages=messages, temperature=0, max_tokens=MAX_TOKENS))


def filled(name: str, template: str, fields: Mapping[str, str]) -> str:
    """Places are names alone: `{question.x}` would read what is in the program."""
    try:
        places = [place for _, place, _, _ in Formatter().parse(template) if place is not None]
        if set(places) <= set(fields):
            return template.format(**fields)
        reason = f"{{{next(place for place in places if place not in fields)}}} is none of {', '.join(fields)}"
    except ValueError as error:
        reason = str(error)
    raise DataError(f"judge prompts: {name!r} cannot be filled in ({reason}). Give FastChat's file.")


def answered_turns(answers: Rows) -> dict[tuple[Any, str], list[str]]:
    """Question and model -> the two turns of its answer.

    Raises:
        DataError: an answer has not two texts, or a question has two answers that differ.
    """
    given: dict[tuple[Any, str], list[str]] = {}
    for row in answers:
        place, turns = (row["question_id"], row["model_id"]), turns_of(row, "answers")
        if given.setdefault(place, turns) != turns:
            raise DataError(f"answers of {place[1]!r}: question {place[0]} is answered twice. Keep one of them.")
    return given


def turns_of(row: Mapping[str, Any], name: str) -> list[str]:
    """The two turns of an answer.

    Raises:
        DataError: it has not two texts.
    """
    try:
        turns = list(row["choices"][0]["turns"])
    except (KeyError, IndexError, TypeError):
        turns = []
    if len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"{name}: question {row['question_id']}: expected choices[0].turns with two texts.")
    return turns


def rate(endpoint: Endpoint, judgings: list[Judging], prices: Sequence[float] | None = None) -> Rows:
    """Judgments of all; the score of one that is refused, or holds no rating, is -1, and counted.

    Raises:
        EndpointError, BudgetSpentError: see `ask_all`.
    """
    replies = ask_all(endpoint, [judging.request for judging in judgings], prices)
    rows = []
    for judging in judgings:
        reply = replies.get(judging.request.key)
        text = None if reply is None else reply.text
        known = judging.row | {"judge": [endpoint.model, judging.row["judge"][1]]}
        rows.append(
            known | {"judgment": text, "score": NO_RATING if text is None else read_rating(text), "tstamp": time.time()}
        )
    if unrated := sum(row["score"] == NO_RATING for row in rows):
        log.warning("%d of %d judgments hold no rating of 1 to 10 and are -1; they are left out of the score.",
                    unrated, len(rows))  # fmt: skip
    return rows
