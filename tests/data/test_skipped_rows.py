"""`on_bad_row: skip`: bad rows are left out, counted by problem and named; nothing else is."""

from __future__ import annotations

import time

import pytest

from preftune.data import Row, to_examples
from preftune.data.bad_rows import Problem, SkippedRows
from preftune.errors import DataError, RecipeError
from preftune.types import Origin

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}
MESSAGE = [{"role": "narrator", "content": "a"}]
ASKED = [[{"role": "user", "content": q}, {"role": "assistant", "content": "a"}] for q in "xy"]
BAD = {
    Problem.EQUAL_ANSWERS: {**GOOD, "rejected": "good"},
    Problem.EMPTY_ANSWER: {**GOOD, "chosen": " "},
    Problem.EMPTY_PROMPT: {**GOOD, "prompt": ""},
    Problem.NULL: {**GOOD, "chosen": None},
    Problem.MISSING: {"prompt": "q", "chosen": "good"},
    Problem.WRONG_TYPE: {**GOOD, "rejected": 5},
    Problem.BROKEN_TEXT: {**GOOD, "prompt": "\ud800"},
    Problem.DIFFERENT_PROMPTS: {"prompt": "q", "chosen": ASKED[0], "rejected": ASKED[1]},
    Problem.UNKNOWN_ROLE: {**GOOD, "chosen": MESSAGE},
    Problem.WRONG_TURN: {**GOOD, "chosen": [{"role": "user", "content": "a"}]},
    Problem.TWICE_TOLD: {**GOOD, "system": "s", "prompt": [{"role": "system", "content": "t"}, *ASKED[0][:1]]},
    Problem.WRONG_NUMBER: {**GOOD, "margin": float("nan")},
}


def rows(*values: dict, file: str = "x.jsonl") -> list[Row]:
    return [Row(value, Origin(file, "train", number)) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize("problem", BAD)
def test_every_problem_of_a_row_is_counted_under_its_name(problem):
    skipped = SkippedRows()
    first = {**GOOD, "margin": 1} if problem is Problem.WRONG_NUMBER else {**GOOD, "system": ""}
    examples = to_examples(rows(first, BAD[problem], GOOD), "paired", on_bad_row="skip", skipped=skipped)
    assert [example.origin.row for example in examples] == [1, 3]
    assert skipped.counts == {problem: 1}
    assert str(skipped) == f"1 of 3 rows skipped: {problem} 1 (x.jsonl[train] row 2)"


@pytest.mark.parametrize(
    ("layout", "good", "bad", "problem"),
    [
        ("ranked", {"prompt": "q", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["a"]}, Problem.TOO_FEW),
        ("paired", {"prompt": "q", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["a", "a"]}, "equal answers"),
        (
            "ranked",
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]},
            Problem.TIE,
        ),
        (
            "ranked",
            {**GOOD, "chosen_score": 2, "rejected_score": 1},
            {**GOOD, "chosen_score": 1, "rejected_score": 2},
            Problem.CONTRADICTION,
        ),
        ("unpaired", {**GOOD}, {**GOOD, "rejected": "good"}, Problem.EQUAL_ANSWERS),
        (
            "unpaired",
            {"prompt": "q", "response": "a", "label": True},
            {"prompt": "q", "response": "a", "label": "maybe"},
            Problem.WRONG_TYPE,
        ),
        (
            "single",
            {"input": "q", "output_1": "a", "output_2": "b", "label": 1},
            {"input": "q", "output_1": "a", "output_2": "b", "label": 1.5},
            Problem.TIE,
        ),
        ("single", {"messages": ASKED[0]}, {"messages": ASKED[0][1:]}, Problem.NO_PROMPT),
    ],
)
def test_every_layout_skips(layout, good, bad, problem):
    skipped = SkippedRows()
    examples = to_examples(rows(bad, good), layout, on_bad_row="skip", skipped=skipped)
    assert {example.origin.row for example in examples} == {2}
    assert skipped.counts == {problem: 1}


def test_the_report_names_the_first_rows_of_each_problem_over_several_files():
    skipped = SkippedRows()
    equal, empty = BAD[Problem.EQUAL_ANSWERS], BAD[Problem.EMPTY_ANSWER]
    to_examples(rows(GOOD, equal, empty, equal), "paired", on_bad_row="skip", skipped=skipped)
    to_examples(rows(equal, equal, GOOD, file="y.jsonl"), "paired", on_bad_row="skip", skipped=skipped)
    assert str(skipped) == (
        "5 of 7 rows skipped: equal answers 4 (x.jsonl[train] row 2, row 4, y.jsonl[train] row 1, …), "
        "empty answer 1 (x.jsonl[train] row 3)"
    )
    assert skipped.to_dict() == {
        "read": 7,
        "skipped": 5,
        "problems": {
            "equal answers": {
                "count": 4,
                "first": ["x.jsonl[train] row 2", "x.jsonl[train] row 4", "y.jsonl[train] row 1"],
            },
            "empty answer": {"count": 1, "first": ["x.jsonl[train] row 3"]},
        },
    }


def test_the_log_warns_with_the_count_and_is_silent_without_bad_rows(caplog):
    caplog.set_level("WARNING", logger="preftune")
    to_examples(rows(GOOD, GOOD), "paired", on_bad_row="skip")
    assert not caplog.messages
    to_examples(rows(GOOD, BAD[Problem.NULL]), "paired", on_bad_row="skip")
    assert caplog.messages == ["x.jsonl[train]: 1 of 2 rows skipped: null 1 (x.jsonl[train] row 2)"]


def test_when_all_rows_are_bad_the_first_is_quoted():
    with pytest.raises(DataError) as caught:
        to_examples(rows(BAD[Problem.EQUAL_ANSWERS], BAD[Problem.EMPTY_ANSWER]), "paired", on_bad_row="skip")
    assert str(caught.value) == (
        "x.jsonl[train] row 1: 'chosen' and 'rejected' are the same (\"good\"). A pair needs two different answers: "
        "delete the row. This is the first of 2 rows, which are all bad: none is left to train on."
    )


def test_columns_that_give_no_form_are_refused_all_the_same():
    with pytest.raises(DataError, match="there is no 'rejected' column"):
        to_examples(rows({"prompt": "q", "chosen": "a"}), "paired", on_bad_row="skip")


def test_an_unknown_policy_is_the_recipes_fault():
    with pytest.raises(RecipeError, match="'on_bad_row' is 'drop'; expected 'error' or 'skip'"):
        to_examples(rows(GOOD), "paired", on_bad_row="drop")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_one_bad_row_in_100_000_is_found_and_named_within_seconds(on_bad_row):
    values = rows(*[GOOD] * 99_998, BAD[Problem.EMPTY_ANSWER], GOOD)
    skipped = SkippedRows()
    started = time.perf_counter()
    if on_bad_row == "error":
        with pytest.raises(DataError, match="row 99999: the answer in 'chosen' is only whitespace"):
            to_examples(values, "paired")
    else:
        assert len(to_examples(values, "paired", on_bad_row="skip", skipped=skipped)) == 99_999
        assert str(skipped) == "1 of 100000 rows skipped: empty answer 1 (x.jsonl[train] row 99999)"
    assert time.perf_counter() - started < 10  # a second or two; 10 on a busy machine
