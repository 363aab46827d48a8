"""Unpaired rows: every form of a labelled answer, pairs split in two, and the balance of the classes."""

from __future__ import annotations

import logging

import pytest

from preftune.data import Row, class_balance, load_preferences, recognise, to_examples
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Message, Origin

ORIGIN = Origin("x.jsonl", "train", 1)


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def rows(*values: dict) -> list[Row]:
    return [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]


def one(value: dict, columns=None) -> tuple[tuple[Message, ...], tuple[str, ...], tuple[float, ...]]:
    (example,) = to_examples(rows(value), "unpaired", columns)
    return example.prompt, example.responses, example.scores


CONVERSATION = [turn("user", "q"), turn("assistant", "a")]
FORMS = {
    "prompt and response": {"prompt": "q", "response": "a", "label": True},
    "prompt and completion as messages": {
        "prompt": [turn("user", "q")],
        "completion": [turn("assistant", "a")],
        "label": True,
    },
    "conversation": {"messages": CONVERSATION, "label": True},
    "from and value": {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "kto_tag": True,
    },
    "alpaca": {"instruction": "q", "input": "", "output": "a", "tag": True},
    "query": {"query": "q", "response": "a", "history": [], "system": "", "label": True},
    "answer": {"question": "q", "answer": "a", "desirable": True},
    "answer with its history": {"completion": CONVERSATION, "label": True},
    "a label among other tags": {"prompt": "q", "response": "a", "tag": "chat", "label": True},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_labelled_row_gives_the_same_example(name):
    assert one(FORMS[name]) == ((Message("user", "q"),), ("a",), (1.0,))


def test_history_and_system_stand_before_the_question():
    value = {"query": "q2", "response": "a", "history": [["q1", "a1"]], "system": "Be brief.", "label": 0}
    prompt, _, scores = one(value)
    assert [message.content for message in prompt] == ["Be brief.", "q1", "a1", "q2"]
    assert scores == (0.0,)


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "True", "TRUE", " true", "1", "1.0"])
def test_a_label_for_desirable(value):
    assert one({"prompt": "q", "response": "a", "label": value})[2] == (1.0,)


@pytest.mark.parametrize("value", [False, 0, 0.0, -0.0, "false", "False", "FALSE", "0"])
def test_a_label_for_undesirable(value):
    assert one({"prompt": "q", "response": "a", "label": value})[2] == (0.0,)


def test_any_column_is_a_label_when_it_is_mapped():
    value = {"prompt": "q", "response": "a", "thumbs_up": 0, "label": "helpful"}
    assert one(value, {"thumbs_up": "label"})[2] == (0.0,)


def test_a_csv_file_of_labelled_rows(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,completion,label\nq,a,True\nq,b,0\n")
    examples = load_preferences(tmp_path / "x.csv", layout="unpaired")
    assert [(example.responses, example.scores) for example in examples] == [(("a",), (1.0,)), (("b",), (0.0,))]


def test_a_pair_becomes_two_rows_with_its_origin_and_the_log_counts_them(caplog):
    pairs = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad", "label": "easy", "margin": 2} for n in (1, 2)]
    with caplog.at_level(logging.INFO):
        examples = to_examples(rows(*pairs), "unpaired")
    expected = [
        Example((Message("user", f"q{n}"),), (response,), Origin("x.jsonl", "train", n), scores)
        for n in (1, 2)
        for response, scores in (("good", (1.0,)), ("bad", (0.0,)))
    ]
    assert examples == expected
    assert caplog.messages[1:] == ["x.jsonl[train]: 2 pairs become 4 rows: chosen desirable, rejected undesirable"]


def test_the_scores_of_a_pair_that_is_split_are_not_looked_at():
    values = rows({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": -1})
    assert [example.scores for example in to_examples(values, "unpaired")] == [(1.0,), (0.0,)]
    assert recognise(values, "unpaired").unused == ("margin",)


def test_single_rows_leave_the_label_alone():
    (example,) = to_examples(rows({"prompt": "q", "response": "a", "label": False}), "single")
    assert example.scores == ()


def test_the_mapping_names_the_label():
    mapping = recognise(rows({"instruction": "q", "output": "a", "tag": True}), "unpaired")
    assert (
        str(mapping)
        == "unpaired: prompt = 'instruction' (text), response = 'output' (text), label = 'tag' (true or false)"
    )


# --- balance


def labelled(desirable: int, undesirable: int) -> list[Example]:
    scores = [(1.0,)] * desirable + [(0.0,)] * undesirable
    return [Example((Message("user", "q"),), ("a",), ORIGIN, score) for score in scores]


def test_equal_classes_are_balanced():
    balance = class_balance(labelled(100, 95))
    assert (balance.desirable, balance.undesirable, balance.balanced, balance.proposal) == (100, 95, True, None)
    assert balance.ratio == pytest.approx(100 / 95)
    assert str(balance) == (
        "100 desirable rows (weight 1), 95 undesirable (weight 1): ratio 1.05, within 1 to 4/3"
    )  # fmt: skip


@pytest.mark.parametrize(("desirable", "undesirable"), [(3, 3), (4, 3)])
def test_both_ends_of_the_interval_belong_to_it(desirable, undesirable):
    assert class_balance(labelled(desirable, undesirable)).balanced


@pytest.mark.parametrize(
    ("counts", "weights", "proposal"),
    [
        ((10, 40), (1.0, 1.0), ("desirable_weight", 4.0)),
        ((10, 11), (1.0, 1.0), ("desirable_weight", 1.1)),
        ((40, 10), (1.0, 1.0), ("undesirable_weight", 3.0)),
        ((7, 5), (1.0, 1.0), ("undesirable_weight", 1.05)),
        ((3, 7), (1.0, 1.0), ("desirable_weight", 2.34)),
        ((10, 10), (0.5, 1.0), ("desirable_weight", 1.0)),
        ((10, 10), (0.0, 1.0), ("desirable_weight", 1.0)),
        ((10, 10), (1.0, 0.0), ("undesirable_weight", 0.75)),
        ((10_000, 1), (1.0, 1.0), ("undesirable_weight", 7500.0)),
    ],
)
def test_the_weight_of_the_class_that_weighs_too_little_is_raised_to_the_near_end(counts, weights, proposal):
    balance = class_balance(labelled(*counts), *weights)
    assert not balance.balanced
    assert balance.proposal == proposal
    key, value = proposal
    assert value > getattr(balance, key)
    assert f"set {key}: {value:g}" in str(balance)


@pytest.mark.parametrize("desirable", range(1, 40, 3))
@pytest.mark.parametrize("weight", [0.1, 0.33, 1.0, 7.0])
def test_what_is_proposed_balances(desirable, weight):
    rows = labelled(desirable, 40 - desirable)
    weights = {"desirable_weight": weight, "undesirable_weight": 1.0}
    proposal = class_balance(rows, **weights).proposal
    if proposal is not None:
        key, value = proposal
        assert value > weights[key]
        assert class_balance(rows, **{**weights, key: value}).balanced


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (labelled(3, 0), r"x.jsonl\[train\]: all 3 rows are desirable, and KTO needs both.*label false"),
        (labelled(0, 2), r"x.jsonl\[train\]: all 2 rows are undesirable, and KTO needs both.*label true"),
        ([], "there are no rows to count"),
        ([Example((Message("user", "q"),), ("a", "b"), ORIGIN)], r"row 1: the row has no label.*layout 'unpaired'"),
    ],
)
def test_rows_without_two_classes_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        class_balance(rows)


def test_an_unknown_way_to_make_pairs_is_the_recipes_fault():
    with pytest.raises(RecipeError, match="'ranked_pairs' is 'best'; expected 'best_worst' or 'all'"):
        to_examples(rows(FORMS["conversation"]), "unpaired", ranked_pairs="best")
