"""Ranked rows: every form, sorted best first; pairs made of them, and pairs read as ranked rows."""

from __future__ import annotations

import logging
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import Row, recognise, to_examples
from preftune.errors import DataError
from preftune.types import Message, Origin

PROMPT = (Message("user", "q"),)


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def rows(*values: dict) -> list[Row]:
    return [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]


def one(value: dict, layout="ranked", **arguments):
    (example,) = to_examples(rows(value), layout, **arguments)
    assert example.prompt == PROMPT
    return example.responses, example.scores


def pairs(value: dict, ranked_pairs: str):
    examples = to_examples(rows(value), "paired", ranked_pairs=ranked_pairs)
    return [(example.responses, example.scores) for example in examples]


TEXTS = ["b", "a", "c"]
SCORED = {
    "texts": {"prompt": "q", "responses": TEXTS, "scores": [2, 3, 1]},
    "messages": {"prompt": "q", "completions": [turn("assistant", text) for text in TEXTS], "rewards": [2, 3.0, 1]},
    "conversations": {
        "outputs": [[turn("user", "q"), turn("assistant", text)] for text in TEXTS],
        "ratings": ["2", "3", "1"],
    },
    "beside the pair that was made of them": {
        "prompt": "q",
        "chosen": [turn("user", "q"), turn("assistant", "a")],
        "rejected": [turn("user", "q"), turn("assistant", "c")],
        "all_generated_responses": TEXTS,
        "all_rm_scores": [2, 3, 1],
    },
    "an answer column": {"instruction": "q", "input": "", "output": TEXTS, "history": [], "scores": [2, 3, 1]},
    "objects with overall_score": {
        "instruction": "q",
        "completions": [
            {"response": text, "overall_score": score, "score": None, "model": "m"}
            for text, score in zip(TEXTS, [2, 3, 1], strict=True)
        ],
    },
    "objects with score": {
        "prompt": "q",
        "completions": [{"response": text, "score": s} for text, s in zip(TEXTS, [2, 3, 1], strict=True)],
    },
    "objects with content and rating": {
        "prompt": "q",
        "responses": [{"content": text, "rating": s} for text, s in zip(TEXTS, [2, 3, 1], strict=True)],
    },
    "objects with messages": {
        "prompt": [turn("user", "q")],
        "completions": [
            {"messages": [turn("assistant", text)], "reward": s} for text, s in zip(TEXTS, [2, 3, 1], strict=True)
        ],
    },
    "generations and rating": {"input": "q", "generations": TEXTS, "rating": [2, 3, 1]},
    "messages with score": {
        "prompt": "q",
        "responses": [turn("assistant", t) | {"score": s} for t, s in zip(TEXTS, [2, 3, 1], strict=True)],
    },
}
RANKS = {
    "a column": {"prompt": "q", "responses": TEXTS, "rank": [2, 1, 3]},
    "objects": {
        "prompt": "q",
        "answers": [{"answer": text, "rank": rank} for text, rank in zip(TEXTS, [2.0, 1.0, 3.0], strict=True)],
    },
}


@pytest.mark.parametrize("name", SCORED)
def test_every_form_with_scores_is_sorted_best_first(name):
    assert one(SCORED[name]) == (("a", "b", "c"), (3.0, 2.0, 1.0))


@pytest.mark.parametrize("name", RANKS)
def test_the_lowest_rank_is_best_and_the_score_is_minus_the_rank(name):
    assert one(RANKS[name]) == (("a", "b", "c"), (-1.0, -2.0, -3.0))


@pytest.mark.parametrize("column", ["output", "answer", "responses"])
def test_without_scores_the_list_is_best_first(column):
    assert one({"instruction": "q", column: TEXTS}) == (("b", "a", "c"), ())


def test_numbers_that_nobody_named_are_not_taken_for_the_order():
    value = {"prompt": "q", "responses": TEXTS, "quality": [2, 3, 1]}
    with pytest.raises(
        DataError, match=r"'quality' holds a number for each of 'responses'.*columns: \{quality: scores\}"
    ):
        one(value)
    assert one(value, columns={"quality": "scores"}) == (("a", "b", "c"), (3.0, 2.0, 1.0))
    assert one(value, columns={"quality": "ranks"})[0] == ("c", "b", "a")
    assert one(value, columns={"quality": None}) == (tuple(TEXTS), ())
    objects = [{"text": text, "quality": number} for number, text in enumerate(TEXTS)]
    with pytest.raises(DataError, match="'responses' has 'quality' for its responses, expected overall_score, score"):
        one({"prompt": "q", "responses": objects})


def test_a_column_of_scores_counts_before_ranks_and_before_the_scores_of_the_objects():
    value = {**SCORED["objects with score"], "scores": [1, 2, 3], "ranks": [1, 2, 3]}
    assert one(value)[0] == ("c", "a", "b")
    assert recognise(rows(value), "ranked").unused == ("ranks",)


def test_equal_scores_keep_the_order_of_the_file_and_the_same_response_may_stand_twice_there():
    value = {"prompt": "q", "responses": ["b", "a", "c", "b"], "scores": [1, 2, 1, 1]}
    assert one(value) == (("a", "b", "c", "b"), (2.0, 1.0, 1.0, 1.0))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6).filter(lambda scores: len(set(scores)) > 1))
def test_each_score_stays_with_its_response_and_all_pairs_are_those_one_is_better_of(scores):
    value = {"prompt": "q", "responses": [f"a{n}" for n in range(len(scores))], "scores": scores}
    score_of = dict(zip(value["responses"], map(float, scores), strict=True))
    responses, sorted_scores = one(value)
    assert sorted(responses) == value["responses"]
    assert list(sorted_scores) == [score_of[response] for response in responses] == sorted(score_of.values())[::-1]
    better = {
        (a, b) if score_of[a] > score_of[b] else (b, a)
        for a, b in combinations(score_of, 2)
        if score_of[a] != score_of[b]
    }
    every = pairs(value, "all")
    assert len(every) == len(better)
    assert {responses for responses, _ in every} == better
    assert all(both == (score_of[chosen], score_of[rejected]) for (chosen, rejected), both in every)
    assert pairs(value, "best_worst") == [((responses[0], responses[-1]), (sorted_scores[0], sorted_scores[-1]))]


def test_pairs_of_a_list_without_scores_follow_its_order():
    value = {"instruction": "q", "output": TEXTS}
    assert pairs(value, "best_worst") == [(("b", "c"), ())]
    assert pairs(value, "all") == [(("b", "a"), ()), (("b", "c"), ()), (("a", "c"), ())]


@pytest.mark.parametrize(("ranked_pairs", "count"), [("best_worst", 2), ("all", 4)])
def test_the_log_says_once_how_many_pairs_became_of_how_many_rows(caplog, ranked_pairs, count):
    values = rows(SCORED["texts"], {"prompt": "q", "responses": ["a", "b"], "scores": [0, 1]})
    with caplog.at_level(logging.INFO):
        examples = to_examples(values, "paired", ranked_pairs=ranked_pairs)
    assert [example.origin.row for example in examples] == [1] * (count - 1) + [2]
    said = f"x.jsonl[train]: 2 ranked rows with 5 responses become {count} pairs (ranked_pairs: {ranked_pairs})"
    assert caplog.messages[1:] == [said]


def test_single_takes_the_best_response():
    assert one(SCORED["texts"], "single") == (("a",), ())
    assert one({"instruction": "q", "output": TEXTS}, "single") == (("b",), ())


def test_a_file_with_pairs_and_all_responses_gives_each_layout_its_own():
    value = SCORED["beside the pair that was made of them"]
    assert one(value, "paired")[0] == ("a", "c")
    assert one(value, "ranked")[0] == ("a", "b", "c")


# --- pairs


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize("layout", ["paired", "ranked"])
@pytest.mark.parametrize(
    ("more", "scores"),
    [
        ({}, ()),
        ({"margin": 0.5}, (0.5, 0.0)),
        ({"margin": 0}, (0.0, 0.0)),
        ({"margin": 3, "chosen_score": 9, "rejected_score": 1}, (3.0, 0.0)),
        ({"chosen_score": 8, "rejected_score": 5.5}, (8.0, 5.5)),
        ({"score_chosen": 8.0, "score_rejected": 8.0}, (8.0, 8.0)),
        ({"chosen_rating": "4", "rejected_rating": "1"}, (4.0, 1.0)),
        ({"chosen_score": 8}, ()),
    ],
)
def test_a_pair_is_two_responses_with_what_is_said_of_them(layout, more, scores):
    assert one({**PAIR, **more}, layout) == (("good", "bad"), scores)


@pytest.mark.parametrize("more", [{"margin": None}, {"chosen_score": 1, "rejected_score": ""}])
def test_pair_objectives_take_a_pair_without_its_scores(more):
    assert one({**PAIR, **more}, "paired")[1] == ()


def test_a_column_of_margins_can_be_ignored():
    assert one({**PAIR, "margin": -1}, "paired", columns={"margin": None})[1] == ()


def test_pairs_whose_scores_contradict_them_are_kept_as_pairs_and_counted(caplog):
    values = [{**PAIR, "chosen_score": chosen, "rejected_score": 5} for chosen in (4, 5, 6, 1)]
    examples = to_examples(rows(*values), "paired")
    assert [example.responses for example in examples] == [("good", "bad")] * 4
    assert [example.scores[0] for example in examples] == [4.0, 5.0, 6.0, 1.0]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "in 2 of 4 pairs the rejected answer has the higher score" in record.message


def test_the_mapping_names_responses_scores_and_margins():
    mapping = recognise(rows(SCORED["beside the pair that was made of them"]), "ranked")
    assert str(mapping) == (
        "ranked: prompt = 'prompt' (text), responses = 'all_generated_responses' (list), scores = 'all_rm_scores' "
        "(list); unused: chosen, rejected"
    )
    assert recognise(rows({**PAIR, "margin": 1.0}), "paired").kinds["margin"] == "number"
