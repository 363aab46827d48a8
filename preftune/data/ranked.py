"""Ranked rows: one prompt and several responses, best first, and what becomes of them for objectives that take pairs.

The responses are texts, messages, conversations that share their history, or objects such as {response, overall_score}
and {answer, rank}. Scores stand in a column of their own, one number a response, or in these objects; a column counts
before the objects, scores before ranks. Of ranks the lowest is best: the score is minus the rank. Without either the
list is taken as it stands, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

from preftune.data.bad_rows import Problem
from preftune.data.reader import RowReader, build_example, read_prompt, shared_history, to_answer
from preftune.data.sources import excerpt
from preftune.types import Example

RankedPairs = Literal["best_worst", "all"]
RESPONSE_KEYS = ("response", "answer", "completion", "output", "text", "content", "messages")
SCORE_KEYS = ("overall_score", "score", "rating", "reward")
RANK_KEYS = ("rank",)
REMEDY = "Write one number a response, or delete the row"


def read_ranked(reader: RowReader) -> Example:
    """The row with its responses sorted best first; equal scores keep the order of the file."""
    items = _items(reader)
    name = reader.name("responses")
    read = [to_answer(reader, _response(item), f"'{name}' item {place}") for place, item in enumerate(items, 1)]
    answers = [answer for _, answer in read]
    scores = _scores(reader, items)
    _check_preferences(reader, answers, scores)
    prompt = read_prompt(reader, shared_history(reader, [history for history, _ in read]), "responses")
    example = build_example(reader, prompt, answers, scores)
    return example.pick(*sorted(range(len(answers)), key=lambda place: -scores[place])) if scores else example


def to_pairs(example: Example, ranked_pairs: RankedPairs) -> list[Example]:
    """The pairs of a ranked example, chosen first, with their scores.

    `best_worst`: its first response against its last. `all`: every two of which one is better.
    """
    last = len(example.responses) - 1
    places = [(0, last)] if ranked_pairs == "best_worst" else combinations(range(last + 1), 2)
    return [example.pick(i, j) for i, j in places if not example.scores or example.scores[i] > example.scores[j]]


# --- one row


def _items(reader: RowReader) -> list[Any]:
    expected = "a list of responses"
    value, where = reader.value("responses", expected), f"'{reader.name('responses')}'"
    if not isinstance(value, list):
        raise reader.unlike(value, where, expected, 'Write it as ["best answer", "worse answer"], or delete the row')
    if len(value) < 2:
        sentence = f"{where} is a list of {len(value)}, expected at least 2 responses"
        raise reader.wrong(Problem.TOO_FEW, sentence, "Add another response, or delete the row")
    return value


def _response(item: object) -> object:
    """The text or messages in an object that holds a response with its score; else the item itself."""
    if isinstance(item, dict) and "role" not in item and "from" not in item:
        return next((item[key] for key in RESPONSE_KEYS if key in item), item)
    return item


def _scores(reader: RowReader, items: Sequence[object]) -> tuple[float, ...]:
    """One number for each response, more is better; empty where the row has none."""
    for role, sign in (("scores", 1), ("ranks", -1)):
        if role in reader.mapping.roles:
            return _column(reader, role, len(items), sign)
    for keys, sign in ((SCORE_KEYS, 1), (RANK_KEYS, -1)):
        values = [_first(item, keys) for item in items]
        if any(value is not None for value in values):
            where = f"the {' or '.join(keys)} of '{reader.name('responses')}' item"
            return _numbers(reader, values, where, sign)
    _check_unscored(reader, items)
    return ()


def _check_unscored(reader: RowReader, items: Sequence[object]) -> None:
    """Objects that hold a number under another name are not taken as best first."""
    for item in items:
        keys = item if isinstance(item, dict) and not {"role", "from"} & item.keys() else {}
        name = next((key for key, value in keys.items() if isinstance(value, int | float)), None)
        if name is not None:
            known = f"{', '.join(SCORE_KEYS)} (more is better) or {', '.join(RANK_KEYS)} (less is better)"
            sentence = f"'{reader.name('responses')}' has '{name}' for its responses, expected {known}"
            raise reader.wrong(Problem.WRONG_NUMBER, sentence, "Rename it, or write texts alone, best first")


def _first(item: object, keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None) if isinstance(item, dict) else None


def _column(reader: RowReader, role: str, count: int, sign: int) -> tuple[float, ...]:
    expected = f"a list of {count} numbers"
    value, name = reader.value(role, expected), reader.name(role)
    if not isinstance(value, list):
        raise reader.unlike(value, f"'{name}'", expected, REMEDY)
    if len(value) != count:
        sentence = f"'{name}' holds {len(value)} numbers for {count} responses in '{reader.name('responses')}'"
        raise reader.wrong(Problem.WRONG_NUMBER, sentence, REMEDY)
    return _numbers(reader, value, f"'{name}' item", sign)


def _numbers(reader: RowReader, values: Sequence[object], where: str, sign: int) -> tuple[float, ...]:
    numbers = [reader.number(value, f"{where} {place}", REMEDY) for place, value in enumerate(values, 1)]
    if min(numbers) == max(numbers):
        sentence = f"all {len(numbers)} responses have the same {'score' if sign > 0 else 'rank'} ({numbers[0]:g})"
        raise reader.wrong(Problem.TIE, f"{sentence}, so none is preferred", "Correct the numbers, or delete the row")
    return tuple(sign * number for number in numbers)


def _check_preferences(reader: RowReader, answers: Sequence[str], scores: Sequence[float]) -> None:
    """A response cannot be better than itself."""
    first: dict[str, int] = {}
    for place, answer in enumerate(answers):
        other = first.setdefault(answer, place)
        if other == place or (scores and scores[other] == scores[place]):
            continue
        ranked = f"with scores {scores[other]:g} and {scores[place]:g}" if scores else "at two ranks"
        items = f"items {other + 1} and {place + 1} of '{reader.name('responses')}'"
        sentence = f"{items} are the same response ({excerpt(answer)}) {ranked}"
        raise reader.wrong(Problem.EQUAL_ANSWERS, sentence, "Delete one of them, or the row")
