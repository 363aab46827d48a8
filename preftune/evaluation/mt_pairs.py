"""MT-Bench's games: a model against a baseline, each turn judged in both orders, as FastChat's llm_judge plays them.

In game 1 the model is assistant A, in game 2 it is B. The judge's prompts are read from FastChat's judge_prompts.jsonl
(pair-v2, pair-math-v1 and their multi-turn forms). The model is `model_1`, the baseline `model_2`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.endpoint import ChatRequest, Endpoint
from preftune.errors import DataError
from preftune.evaluation.files import Rows
from preftune.evaluation.judge import ask_all
from preftune.evaluation.mt_bench import WITH_REFERENCE, asked_turns, read_winner
from preftune.evaluation.mt_judge import MAX_TOKENS, answered_turns, filled, turns_of

SIDES = ({"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"})  # of game 1 and game 2
TURNS = (1, 2)


@dataclass(frozen=True)
class Match:
    """One turn of one question. answers: of the model and of the baseline, both turns each."""

    question: Mapping[str, Any]
    turn: int
    models: tuple[str, str]
    answers: tuple[list[str], list[str]]

    def row(self, **more: Any) -> dict[str, Any]:
        """The fields of FastChat's row that are known before a judge speaks, and more."""
        return {"question_id": self.question["question_id"], "model_1": self.models[0], "model_2": self.models[1],
                **more, "turn": self.turn, "tstamp": time.time()}  # fmt: skip


@dataclass(frozen=True)
class Game:
    """A request, and the name of its prompt."""

    request: ChatRequest
    prompt: str


def build_matches(questions: Rows, answers: Rows, baseline: Rows) -> list[Match]:
    """Both turns of all questions, for every model of `answers` against the one of `baseline`.

    Raises:
        DataError: a question has not two turns, an answer is missing or there twice, or the baseline is not one other
            model.
    """
    others = list(dict.fromkeys(row["model_id"] for row in baseline))
    if len(others) != 1:
        raise DataError(f"baseline: expected the answers of one model, found {len(others)}: {', '.join(others[:3])}.")
    given = answered_turns([*answers, *baseline])
    models = [model for model in dict.fromkeys(row["model_id"] for row in answers) if model != others[0]]
    if not models:
        raise DataError(f"answers: all are of {others[0]!r}, the baseline itself. Give those of another model.")
    for question in questions:
        asked_turns(question)
    found = []
    for model in models:
        for turn in TURNS:
            for question in questions:
                pair = (model, others[0])
                number = question["question_id"]
                absent = next((name for name in pair if (number, name) not in given), None)
                if absent is not None:
                    raise DataError(f"answers of {absent!r}: question {number} has none. Generate it.")
                found.append(Match(question, turn, pair, (given[number, pair[0]], given[number, pair[1]])))
    return found


def play(
    endpoint: Endpoint,
    matches: Sequence[Match],
    references: Rows,
    prompts: Rows,
    prices: Sequence[float] | None = None,
) -> Rows:
    """Judgments of all matches; a judge that refuses, or names no winner, leaves 'error'.

    Raises:
        DataError: a prompt or a reference is missing.
        EndpointError, BudgetSpentError: see `ask_all`.
    """
    templates = {row["name"]: row for row in prompts}
    correct = {row["question_id"]: turns_of(row, "references") for row in references}
    games = [[_game(match, number, correct, templates) for number in (0, 1)] for match in matches]
    replies = ask_all(endpoint, [game.request for pair in games for game in pair], prices)
    rows = []
    for match, pair in zip(matches, games, strict=True):
        heard = [replies.get(game.request.key) for game in pair]
        said = [None if reply is None else reply.text for reply in heard]
        won = [winner_of(text, number) for number, text in enumerate(said)]
        asked = [game.request.messages[1]["content"] for game in pair]
        rows.append(match.row(g1_winner=won[0], g2_winner=won[1], judge=[endpoint.model, pair[0].prompt],
                              g1_user_prompt=asked[0], g1_judgment=said[0],
                              g2_user_prompt=asked[1], g2_judgment=said[1]))  # fmt: skip
    return rows


def winner_of(judgment: str | None, game: int) -> str:
    """model_1, model_2, tie or error, of game 0 or 1; None is a judgment that was refused."""
    winner = "error" if judgment is None else read_winner(judgment)
    return SIDES[game].get(winner, winner)


def _game(
    match: Match, number: int, references: Mapping[Any, list[str]], templates: Mapping[str, Mapping[str, Any]]
) -> Game:
    question, asked = match.question["question_id"], match.question["turns"]
    referenced = match.question["category"] in WITH_REFERENCE
    name = f"pair-{'math-v1' if referenced else 'v2'}{'-multi-turn' if match.turn == 2 else ''}"
    if name not in templates:
        raise DataError(f"judge prompts: {name!r} is missing; found {', '.join(templates)}. Give FastChat's file.")
    if referenced and question not in references:
        kind = match.question["category"]
        raise DataError(f"references: question {question} ({kind}) has none. Give all of them.")
    first, second = match.answers if number == 0 else match.answers[::-1]
    fields = {"question": asked[0], "question_1": asked[0], "question_2": asked[1], "answer_a": first[0],
              "answer_b": second[0], "answer_a_1": first[0], "answer_a_2": first[1], "answer_b_1": second[0],
              "answer_b_2": second[1]}  # fmt: skip
    if referenced:
        fields |= {f"ref_answer_{place}": text for place, text in enumerate(references[question], 1)}
    messages = [
        {"role": "system", "content": templates[name]["system_prompt"]},
        {"role": "user", "content": filled(name, templates[name]["prompt_template"], fields)},
    ]
    key = f"{match.models[0]} and {match.models[1]}, question {question}, turn {match.turn}, game {number + 1}"
    return Game(ChatRequest(key=key, messages=messages, temperature=0, max_tokens=MAX_TOKENS), name)
