"""Benchmark questions are found in rows by their runs of words."""

from __future__ import annotations

import pytest

from preftune.data import tokenize_examples
from preftune.data.decontaminate import Questions, drop_contaminated
from preftune.errors import RecipeError
from preftune.types import Message

QUESTION = "A train leaves the station at nine and travels for three hours at sixty miles an hour"  # 17 words
WORDS = QUESTION.split()


def test_a_question_is_found_whatever_its_case_and_punctuation(example):
    copied = "Please solve: " + QUESTION.upper().replace(" ", ", ") + "!"
    assert Questions([QUESTION]).find(example(copied, "a")) == QUESTION


@pytest.mark.parametrize(("words", "found"), [(8, False), (9, True), (17, True), (7, False)])
def test_more_than_half_of_its_words_in_runs_of_eight_is_a_copy(example, words, found):
    """8 of 17 words are less than half; 9 are more."""
    row = example("x y z " + " ".join(WORDS[:words]) + " and so on", "a")
    assert (Questions([QUESTION]).find(row) is not None) == found


def test_scattered_words_are_no_copy(example):
    row = example(" so ".join(" ".join(WORDS[n : n + 7]) for n in range(0, 17, 7)), "a")
    assert Questions([QUESTION]).find(row) is None


def test_a_short_question_must_stand_there_whole(example):
    questions = Questions(["What is 2+2?"])
    assert questions.find(example("Tell me: what is 2 + 2", "a"))
    assert questions.find(example("What is 2+3?", "a")) is None


def test_chinese_questions_are_compared_by_characters(example):
    questions = Questions(["中国的首都是哪一座城市?"])
    assert questions.find(example("请问,中国的首都是哪一座城市呢", "a"))
    assert questions.find(example("法国的首都在哪里", "a")) is None


def test_only_what_the_user_says_counts(example):
    earlier = (Message("user", "q"), Message("assistant", QUESTION), Message("user", "r"))
    assert Questions([QUESTION]).find(example(earlier, QUESTION)) is None
    assert Questions([QUESTION]).find(example((Message("user", QUESTION), *earlier[1:]), "a"))


def test_rows_are_parted_in_order(example):
    rows = [example("q", "a", row=1), example(QUESTION, "a", row=2), example("r", "a", row=3)]
    kept, others = drop_contaminated(rows, Questions(["no such words", QUESTION]))
    assert [row.origin.row for row in kept] == [1, 3]
    assert [row.origin.row for row in others] == [2]


def test_the_report_counts_them(byte_tokenizer, example):
    rows = [example("q", "a", row=1), example(QUESTION, "a", row=2)]
    groups, report = tokenize_examples(rows, byte_tokenizer(None), decontaminate=Questions([QUESTION]))
    assert [group.origin.row for group in groups] == [1]
    assert [origin.row for origin in report.dropped["with a benchmark's question"]] == [2]


@pytest.mark.parametrize(
    ("questions", "settings", "message"),
    [
        (["?!", ""], {}, "no question with words"),
        (["a"], {"ngram": 0}, "ngram is 0"),
        (["a"], {"overlap": 1.0}, "overlap 1.0; expected ngram >= 1 and 0 <= overlap < 1"),
    ],
)
def test_settings_out_of_range_are_refused(questions, settings, message):
    with pytest.raises(RecipeError, match=message):
        Questions(questions, **settings)
