"""Ways to cut, rows left out, and what the report says of them, on a tokenizer with one token a word."""

from __future__ import annotations

import pytest

from preftune.data import tokenize_examples
from preftune.data.truncate import TRUNCATION_ALIASES
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Message, Origin

BOS, EOS = 1, 2
TURNS = (  # w9 opens an answer, </s> ends each turn
    "{{ bos_token + ' ' }}{% for m in messages %}{{ m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w9 w8 ' }}{% endif %}"
)
HEADER = [12, 11]


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


def ids(count: int, start: int = 0) -> list[int]:
    return list(range(start + 3, start + 3 + count))


@pytest.fixture
def pair(example):
    """An example of so many words in prompt (from w100), chosen (from w1000) and rejected (from w2000)."""

    def build(prompt: int, chosen: int, rejected: int, row: int = 1):
        return example(words(prompt, 100), words(chosen, 1000), words(rejected, 2000), row=row)

    return build


def only(tokenizer, example, **settings):
    (group,), report = tokenize_examples([example], tokenizer, **settings)
    return group.prompt_ids, *group.response_ids, report


def test_keep_end_cuts_the_prompt_before_any_response(word_tokenizer, pair):
    """20 tokens: chosen has 15 with EOS, so BOS and the last 4 words of the prompt stay, below half of max_length."""
    prompt, chosen, rejected, report = only(word_tokenizer, pair(30, 14, 3), max_length=20, truncation="keep_end")
    assert prompt == [BOS, *ids(4, 126)]
    assert (chosen, rejected) == ([*ids(14, 1000), EOS], [*ids(3, 2000), EOS])
    assert (report.prompts_cut, report.responses_cut) == (1, 0)


def test_keep_end_honours_max_prompt_length(word_tokenizer, pair):
    limits = {"max_length": 20, "max_prompt_length": 8}
    cut = only(word_tokenizer, pair(30, 14, 3), truncation="keep_end", **limits)
    assert cut[:3] == only(word_tokenizer, pair(30, 14, 3), **limits)[:3]
    assert [len(part) for part in cut[:3]] == [8, 12, 4]


def test_keep_start_cuts_the_prompts_end(word_tokenizer, pair):
    prompt, chosen, rejected, _ = only(word_tokenizer, pair(30, 4, 3), max_length=20, truncation="keep_start")
    assert prompt == [BOS, *ids(14, 100)]
    assert (len(chosen), len(rejected)) == (5, 4)


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ("keep_start", [BOS, *ids(12, 100), *HEADER]),
        ("keep_end", [BOS, *ids(11, 119), EOS, *HEADER]),
        ("prompt_then_response", [BOS, *ids(11, 119), EOS, *HEADER]),
    ],
)
def test_the_answers_header_is_never_cut(word_tokenizer, pair, truncation, kept):
    word_tokenizer.chat_template = TURNS
    try:
        prompt, chosen, rejected, _ = only(word_tokenizer, pair(30, 4, 3), max_length=20, truncation=truncation)
    finally:
        word_tokenizer.chat_template = None
    assert prompt == kept
    assert (chosen, rejected) == ([*ids(4, 1000), EOS], [*ids(3, 2000), EOS])


def test_keep_end_leaves_the_header_when_the_response_needs_everything(word_tokenizer, pair):
    word_tokenizer.chat_template = TURNS
    try:
        prompt, chosen, _, _ = only(word_tokenizer, pair(30, 40, 3), max_length=20, truncation="keep_end")
    finally:
        word_tokenizer.chat_template = None
    assert (prompt, chosen) == ([BOS, *HEADER], ids(17, 1000))


@pytest.mark.parametrize(("end", "last"), [("none", [*ids(9, 1000), 1012]), ("append", [*ids(9, 1000), EOS])])
def test_a_cut_response_ends_as_asked(word_tokenizer, pair, end, last):
    _, chosen, rejected, _ = only(word_tokenizer, pair(9, 30, 3), max_length=20, cut_response_end=end)
    assert chosen == last
    assert rejected == [*ids(3, 2000), EOS]


def test_drop_leaves_out_and_counts_what_is_too_long(word_tokenizer, pair):
    examples = [pair(9, 9, 9, row=1), pair(10, 9, 9, row=2), pair(1, 2, 30, row=3), pair(2, 2, 2, row=4)]
    groups, report = tokenize_examples(examples, word_tokenizer, max_length=20, truncation="drop")
    assert [group.origin.row for group in groups] == [1, 4]
    assert (report.rows, report.rows_dropped, report.rows_cut) == (2, 2, 0)
    assert [origin.row for origin in report.dropped["longer than max_length"]] == [2, 3]
    assert "2 rows left out: 2 longer than max_length" in str(report)
    assert report.to_dict()["dropped"]["longer than max_length"]["first"][0] == "pairs.jsonl[train] row 2"


def test_error_names_the_row_its_lengths_and_the_ways_out(word_tokenizer, pair):
    with pytest.raises(DataError) as caught:
        only(word_tokenizer, pair(10, 9, 30, row=7), max_length=20, truncation="error")
    assert str(caught.value) == (
        "pairs.jsonl[train] row 7: prompt and response have 11 + 31 tokens, max_length is 20. Raise it, or choose "
        "another truncation: prompt_then_response, keep_start, keep_end, drop."
    )


def test_bad_rows_are_left_out_when_that_is_asked_for(word_tokenizer, example):
    examples = [
        example("w1", "w5 w6 w7", "w5 w6 w8", row=1),  # equal when cut to two tokens
        example("w1", "w5 w6", "w7 w8", row=2),
        example("w1", "</s>", "w7 w8", row=3),  # nothing but the end of turn
    ]
    limits = {"max_length": 4, "max_prompt_length": 2}
    with pytest.raises(DataError, match="row 1: chosen and rejected become the same 2 tokens"):
        tokenize_examples(examples, word_tokenizer, **limits)
    groups, report = tokenize_examples(examples, word_tokenizer, on_bad_row="skip", **limits)
    assert [group.origin.row for group in groups] == [2]
    assert [origin.row for origin in report.dropped["bad rows"]] == [1, 3]


def test_equal_rows_are_left_out_but_the_first(word_tokenizer, pair):
    examples = [pair(3, 2, 1, row=1), pair(3, 2, 2, row=2), pair(3, 2, 1, row=3), pair(3, 2, 1, row=4)]
    groups, report = tokenize_examples(examples, word_tokenizer, dedupe=True)
    assert [group.origin.row for group in groups] == [1, 2]
    assert [origin.row for origin in report.dropped["duplicates"]] == [3, 4]
    assert len(tokenize_examples(examples, word_tokenizer)[0]) == 4


def test_rows_with_other_scores_are_not_duplicates(word_tokenizer):
    rows = [
        Example((Message("user", "w1"),), ("w2", "w3"), Origin("x", "train", row), (score, 0.0))
        for row, score in enumerate((1.0, 2.0, 1.0))
    ]
    assert [group.origin.row for group in tokenize_examples(rows, word_tokenizer, dedupe=True)[0]] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncation": "left", "max_length": 9}, "'truncation' is 'left'; expected one of prompt_then_response, keep"),
        ({"truncation": "drop"}, "'truncation: drop' has no effect without 'max_length'"),
        ({"cut_response_end": "eos", "max_length": 9}, "'cut_response_end' is 'eos'; expected one of none, append"),
        ({"on_bad_row": "warn"}, "'on_bad_row' is 'warn'; expected one of error, skip"),
        ({"tokenization": "trl"}, "'tokenization' is 'trl'; expected one of preftune, princeton"),
        ({"num_proc": 0}, "'num_proc' is 0; expected a number of processes, at least 1"),
    ],
)
def test_a_setting_out_of_range_is_the_recipes_fault(word_tokenizer, pair, settings, message):
    with pytest.raises(RecipeError, match=message):
        only(word_tokenizer, pair(1, 1, 1), **settings)


def test_names_of_other_tools_mean_one_of_ours(word_tokenizer, pair):
    assert TRUNCATION_ALIASES["truncation_strategy"]["delete"] == "drop"
    assert TRUNCATION_ALIASES["truncation_strategy"]["truncation_left"] == "keep_end"
    for names in TRUNCATION_ALIASES.values():
        for ours in names.values():
            tokenize_examples([pair(1, 1, 1)], word_tokenizer, max_length=9, truncation=ours)
