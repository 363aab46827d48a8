"""What the column beside two answers says: names, places, ties and votes."""

from __future__ import annotations

import pytest

from preftune.data import Row, recognise, to_examples
from preftune.data.winners import FIRST, SECOND, TIE, is_ambiguous, majority, verdict
from preftune.errors import DataError
from preftune.types import Origin

ONE_TWO, ZERO_ONE, LETTERS = ("output_1", "output_2"), ("response_0", "response_1"), ("Response_A", "Response_B")


def rows(*values: dict) -> list[Row]:
    return [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("value", "role", "columns", "expected"),
    [
        (1, "winner", ONE_TWO, FIRST),
        (2.0, "winner", ONE_TWO, SECOND),
        ("2", "winner", ONE_TWO, SECOND),
        (0, "winner", ONE_TWO, TIE),
        (1.49, "winner", ONE_TWO, FIRST),
        (1.5, "winner", ONE_TWO, TIE),
        (1.51, "winner", ONE_TWO, SECOND),
        (2.01, "winner", ONE_TWO, None),
        (0.5, "winner", ONE_TWO, None),
        (-1, "winner", ONE_TWO, None),
        (True, "winner", ONE_TWO, None),
        (float("nan"), "winner", ONE_TWO, None),
        ("output_2", "winner", ONE_TWO, SECOND),
        ("Output 1", "winner", ONE_TWO, FIRST),
        ("model_2", "winner 3", ONE_TWO, SECOND),
        ("output_12", "winner", ONE_TWO, None),
        ("both", "winner", ONE_TWO, TIE),
        ("tie (bothbad)", "winner", ONE_TWO, TIE),
        ("", "winner", ONE_TWO, None),
        (None, "winner", ONE_TWO, None),
        ([1], "winner", ONE_TWO, None),
        (0, "winner", ZERO_ONE, FIRST),
        (1, "winner", ZERO_ONE, SECOND),
        (2, "winner", ZERO_ONE, None),
        ("response_0", "winner", ZERO_ONE, FIRST),
        ("A", "winner", LETTERS, FIRST),
        ("model_b", "winner", LETTERS, SECOND),
        ("response_b", "winner", LETTERS, SECOND),
        ("bob", "winner", LETTERS, None),
        ("2", "winner", LETTERS, SECOND),
        ("left", "winner", ("left", "right"), FIRST),
        (2, "winner", ("left", "right"), SECOND),
        (0, "winner_index", ONE_TWO, FIRST),
        (1, "winner_index", ONE_TWO, SECOND),
        (2, "winner_index", ONE_TWO, TIE),
        (0.25, "winner_index", ONE_TWO, FIRST),
        (3, "winner_index", ONE_TWO, None),
    ],
)
def test_a_verdict(value, role, columns, expected):
    assert verdict(value, role, columns) == expected


@pytest.mark.parametrize(
    ("votes", "expected"),
    [([0], 0), ([2], 2), ([0, 0, 1], 0), ([1, 2, 1], 1), ([0, 1, 2], 2), ([0, 2, 2], 2), ([0, 1], 2), ([0, 2], 2)],
)
def test_more_than_half_of_the_annotators_decide(votes, expected):
    assert majority(votes) == expected


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ([1, 2, None, "tie"], ONE_TWO, False),
        ([1.2, "2"], ONE_TWO, False),
        ([1, 2, 0], ONE_TWO, True),
        ([0, 1], LETTERS, True),
        ([0, 1], ZERO_ONE, False),
        ([0, 1, 2], ZERO_ONE, True),
    ],
)
def test_numbers_that_could_be_names_or_places_are_ambiguous(values, columns, expected):
    assert is_ambiguous(values, columns) is expected


# as Auto-J has it, and as PandaLM would if it had one annotator
VOTED = [{"prompt": "q", "response 1": "a", "response 2": "b", "label": label} for label in (0, 1, 2, 1)]


def test_the_map_says_whether_numbers_are_names_or_places():
    def read(role):
        examples = to_examples(rows(*VOTED), "paired", {"label": role}, on_bad_row="skip")
        return [(example.origin.row, example.responses[0]) for example in examples]

    assert read("winner_index") == [(1, "a"), (2, "b"), (4, "b")]
    assert read("winner") == [(2, "a"), (3, "b"), (4, "a")]
    with pytest.raises(DataError, match="do not say by themselves"):
        recognise(rows(*VOTED), "paired")


def test_any_two_columns_can_be_compared():
    columns = {"left": "answer_1", "right": "answer_2", "verdict": "winner"}
    value = {"question": "q", "left": "a", "right": "b", "verdict": "right"}
    (example,) = to_examples(rows(value), "paired", columns)
    assert example.responses == ("b", "a")


def test_answers_are_swapped_where_one_stands_for_the_first():
    columns = {"history": "prompt", "human_ref_B": "answer_1", "human_ref_A": "answer_2", "labels": "winner_index"}
    value = {"history": "q", "human_ref_A": "a", "human_ref_B": "b"}
    examples = to_examples(rows({**value, "labels": 1}, {**value, "labels": 0}), "paired", columns)
    assert [example.responses for example in examples] == [("a", "b"), ("b", "a")]


def test_a_pair_that_is_named_goes_before_two_answers():
    value = {"prompt": "q", "chosen": "good", "rejected": "bad", "output_1": "a", "output_2": "b", "label": 2}
    (example,) = to_examples(rows(value), "paired")
    assert example.responses == ("good", "bad")


def test_labels_of_single_answers_are_no_winners():
    (example,) = to_examples(rows({"prompt": "q", "response": "a", "label": 1}), "unpaired")
    assert example.scores == (1.0,)
