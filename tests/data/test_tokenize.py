"""Cutting what is too long, and the report, on a tokenizer with one token a word."""

from __future__ import annotations

import pytest

from preftune.data import tokenize_examples
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Message, Origin

BOS, EOS = 1, 2


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


def ids(count: int, start: int = 0) -> list[int]:
    return list(range(start + 3, start + 3 + count))


@pytest.fixture
def pair(example):
    """An example of so many words in prompt, chosen and rejected; BOS and EOS come on top."""

    def build(prompt: int, chosen: int, rejected: int, row: int = 1):
        return example(words(prompt), words(chosen, 3000 - chosen), words(rejected), row=row)

    return build


def cut(tokenizer, example, max_length, max_prompt_length=None):
    groups, report = tokenize_examples([example], tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    return groups[0].prompt_ids, groups[0].response_ids, report


def test_a_response_follows_the_prompt_and_ends_with_eos(word_tokenizer, pair):
    prompt, responses, report = cut(word_tokenizer, pair(3, 2, 1), None)
    assert prompt == [BOS, *ids(3)]
    assert responses == [[*ids(2, 2998), EOS], [*ids(1), EOS]]
    assert report.rows_cut == 0


def test_a_pair_that_fits_exactly_is_left_alone(word_tokenizer, pair):
    prompt, responses, report = cut(word_tokenizer, pair(9, 9, 3), 20, 4)
    assert (len(prompt), *map(len, responses)) == (10, 10, 4)
    assert (report.rows_cut, report.prompts_cut, report.responses_cut) == (0, 0, 0)


def test_the_prompt_gives_first_and_no_more_than_is_needed(word_tokenizer, pair):
    prompt, responses, report = cut(word_tokenizer, pair(15, 5, 3), 20, 10)
    assert prompt == [BOS, *ids(13, 2)]  # 14 tokens: the start is cut, BOS stays
    assert [len(r) for r in responses] == [6, 4]
    assert (report.rows_cut, report.prompts_cut, report.responses_cut) == (1, 1, 0)


def test_each_response_is_cut_on_its_own_at_its_end(word_tokenizer, pair):
    prompt, responses, report = cut(word_tokenizer, pair(30, 30, 12), 20, 6)
    assert prompt == [BOS, *ids(5, 25)]
    assert responses[0] == ids(14, 2970)  # cut: no EOS is made up
    assert responses[1] == [*ids(12), EOS]  # 13 tokens fit in 14: untouched
    assert (report.rows_cut, report.prompts_cut, report.responses_cut) == (1, 1, 1)


def test_a_short_prompt_leaves_its_room_to_the_responses(word_tokenizer, pair):
    prompt, responses, _ = cut(word_tokenizer, pair(100, 2000, 300), 2048, 1800)
    assert len(prompt) == 101
    assert len(responses[0]) == 1947
    assert responses[1] == [*ids(300), EOS]


def test_a_prompt_keeps_half_when_nothing_else_is_said(word_tokenizer, pair):
    prompt, responses, _ = cut(word_tokenizer, pair(30, 30, 12), 20)
    assert (len(prompt), len(responses[0]), len(responses[1])) == (10, 10, 10)


def test_bos_stays_even_in_a_prompt_of_one_token(word_tokenizer, pair):
    assert cut(word_tokenizer, pair(9, 9, 2), 5, 1)[0] == [BOS]


def test_a_response_that_would_end_empty_is_refused(word_tokenizer, pair):
    with pytest.raises(DataError, match=r"row 4: the prompt fills all 8 tokens of max_length.*max_prompt_length"):
        cut(word_tokenizer, pair(9, 9, 3, row=4), 8, 8)


def test_responses_that_cutting_makes_equal_are_refused(word_tokenizer, example):
    pair = example("w1", "w5 w6 w7 w8", "w5 w6 w7 w9", row=5)
    with pytest.raises(DataError, match=r"row 5: chosen and rejected become the same 3 tokens.*Raise max_length"):
        cut(word_tokenizer, pair, 5, 2)


@pytest.fixture
def ranked():
    """An example of responses with so many words each, all different, and its scores."""

    def build(prompt: int, *responses: int, scores=(), row: int = 1):
        texts = tuple(words(count, 500 * (k + 1)) for k, count in enumerate(responses))
        return Example((Message("user", words(prompt)),), texts, Origin("x.jsonl", "train", row), scores)

    return build


def test_scores_stay_with_their_responses_whatever_is_cut(word_tokenizer, ranked):
    examples = [ranked(9, 30, 5, 12, scores=(3.0, 2.0, -1.0)), ranked(2, 3, scores=(1.0,)), ranked(2, 40, 1)]
    groups, _ = tokenize_examples(examples, word_tokenizer, max_length=20)
    assert [group.scores for group in groups] == [(3.0, 2.0, -1.0), (1.0,), ()]
    assert [[ids[0] - 3 for ids in group.response_ids] for group in groups] == [[500, 1000, 1500], [500], [500, 1000]]


def test_all_responses_of_a_group_keep_the_same_prompt_and_fit(word_tokenizer, ranked):
    groups, report = tokenize_examples([ranked(15, 12, 3, 30, 9)], word_tokenizer, max_length=20, max_prompt_length=8)
    (group,) = groups
    assert group.prompt_ids == [BOS, *ids(7, 8)]  # by what the longest response needs
    assert [len(response) for response in group.response_ids] == [12, 4, 12, 10]
    assert [response[-1] == EOS for response in group.response_ids] == [False, True, False, True]
    assert (report.rows_cut, report.prompts_cut, report.responses_cut) == (1, 1, 2)


def test_a_ranked_group_that_fits_is_left_alone_beside_one_that_is_cut(word_tokenizer, ranked):
    examples = [ranked(5, 4, 3, 2, row=1), ranked(5, 30, 3, row=2), ranked(30, 3, 2, 1, 1, row=3)]
    groups, report = tokenize_examples(examples, word_tokenizer, max_length=20, max_prompt_length=10)
    assert [len(group.prompt_ids) for group in groups] == [6, 6, 16]
    assert [[len(ids) for ids in group.response_ids] for group in groups] == [[5, 4, 3], [14, 4], [4, 3, 2, 2]]
    assert (report.rows, report.rows_cut, report.prompts_cut, report.responses_cut) == (3, 2, 1, 1)


def test_the_report_of_ranked_groups_has_a_line_for_each_rank(word_tokenizer, ranked):
    examples = [ranked(5, 4, 3, row=1), ranked(5, 8, 2, 1, row=2)]
    lengths = tokenize_examples(examples, word_tokenizer)[1].lengths
    assert list(lengths) == ["prompt", "rank 0", "rank 1", "rank 2"]
    assert [(summary.mean, summary.max) for summary in lengths.values()] == [(6.0, 6), (7.0, 9), (3.5, 4), (2.0, 2)]


def test_a_report_of_labelled_rows_speaks_of_responses(word_tokenizer, ranked):
    groups, report = tokenize_examples([ranked(5, 30, scores=(0.0,)), ranked(2, 2)], word_tokenizer, max_length=20)
    assert list(report.lengths) == ["prompt", "response"]
    assert (report.rows, report.rows_cut, report.responses_cut) == (2, 1, 1)
    assert len(groups[0].prompt_ids) + len(groups[0].response_ids[0]) == 20


@pytest.mark.parametrize("scores", [(), (3.0, 2.0, 1.0)])
def test_responses_of_two_ranks_that_cutting_makes_equal_are_refused(word_tokenizer, scores):
    responses = ("w9 w9", "w5 w6 w7 w8", "w5 w6 w7 w9")
    example = Example((Message("user", "w1"),), responses, Origin("x.jsonl", "train", 7), scores)
    with pytest.raises(DataError, match=r"row 7: the responses of rank 1 and 2 become the same 3 tokens.*Raise max_le"):
        tokenize_examples([example], word_tokenizer, max_length=5, max_prompt_length=2)


def test_responses_of_equal_score_may_become_equal(word_tokenizer):
    responses = ("w9 w9", "w5 w6 w7 w8", "w5 w6 w7 w9")
    example = Example((Message("user", "w1"),), responses, Origin("x.jsonl", "train", 7), (2.0, 1.0, 1.0))
    (group,), _ = tokenize_examples([example], word_tokenizer, max_length=5, max_prompt_length=2)
    assert group.response_ids[1] == group.response_ids[2] == [8, 9, 10]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 1}, "'max_length' is 1; expected a whole number of tokens, at least 2"),
        ({"max_length": "2048"}, "'max_length' is '2048'"),
        ({"max_length": 8, "max_prompt_length": 0}, "'max_prompt_length' is 0"),
        ({"max_prompt_length": 8}, "'max_prompt_length' has no effect without 'max_length'"),
    ],
)
def test_limits_out_of_range_are_the_recipes_fault(word_tokenizer, pair, limits, message):
    with pytest.raises(RecipeError, match=message):
        tokenize_examples([pair(1, 1, 2)], word_tokenizer, **limits)


def test_the_report_counts_rows_and_lengths_before_cutting(word_tokenizer, pair):
    examples = [pair(n, 2, 1, row=n) for n in range(1, 101)]
    groups, report = tokenize_examples(examples, word_tokenizer, max_length=53, max_prompt_length=20)
    assert len(groups) == report.rows == 100
    assert report.prompts_cut == report.rows_cut == 51  # 1 + n + 3 > 53 from n = 50 on
    prompt = report.lengths["prompt"]
    assert (prompt.mean, prompt.p50, prompt.p90, prompt.p99, prompt.max) == (51.5, 52, 92, 101, 101)
    assert list(report.lengths) == ["prompt", "chosen", "rejected"]
    assert str(report).startswith("100 rows, 51 prompts and 0 responses cut (51 rows touched)\n")
    assert "prompt 52 / 92 / 101 / 101" in str(report)
    assert report.to_dict()["lengths"]["chosen"]["max"] == 3


def test_no_rows_give_no_groups(word_tokenizer):
    groups, report = tokenize_examples([], word_tokenizer, max_length=8)
    assert groups == []
    assert report.rows == 0


def test_rows_and_scores_stay_with_their_ids_over_batches(word_tokenizer, pair):
    examples = [pair(1 + n % 5, 2, 1, row=n + 1) for n in range(2500)]
    groups, _ = tokenize_examples(examples, word_tokenizer)
    assert [group.origin.row for group in groups] == list(range(1, 2501))
    assert all(len(group.prompt_ids) == 2 + n % 5 for n, group in enumerate(groups))
