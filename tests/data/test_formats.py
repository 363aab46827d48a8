"""Every form a preference file comes in, and what is made of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from preftune.data import Row, recognise, to_examples
from preftune.errors import RecipeError
from preftune.types import Message, Origin


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def rows(*values: dict) -> list[Row]:
    return [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]


def one(value: dict, layout: str = "paired", columns=None) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    (example,) = to_examples(rows(value), layout, columns)
    return example.prompt, example.responses


HISTORY = [turn("user", "q1"), turn("assistant", "a1"), turn("user", "q2")]
PAIRS = {
    "text": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "message lists": {
        "prompt": [turn("user", "q")],
        "chosen": [turn("assistant", "good")],
        "rejected": [turn("assistant", "bad")],
    },
    "from and value": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "implicit prompt": {
        "chosen": [turn("user", "q"), turn("assistant", "good")],
        "rejected": [turn("user", "q"), turn("assistant", "bad")],
    },
    "implicit prompt beside its text": {
        "prompt": " q\n",
        "chosen": [turn("user", "q"), turn("assistant", "good")],
        "rejected": [turn("user", "q"), turn("assistant", "bad")],
        "messages": [turn("user", "q"), turn("assistant", "good")],
    },
    "implicit prompt beside its messages": {
        "prompt": [turn("user", "q")],
        "chosen": [turn("user", "q"), turn("assistant", "good")],
        "rejected": [turn("user", "q"), turn("assistant", "bad")],
    },
    "query and response": {"query": "q", "response": "good", "rejected_response": "bad", "history": [], "system": ""},
    "question": {"question": "q", "chosen": "good", "rejected": "bad", "system": None},
    "messages with a rejected answer": {
        "messages": [turn("user", "q"), turn("assistant", "good")],
        "rejected_response": "bad",
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_form_of_a_pair_gives_the_same_example(name):
    assert one(PAIRS[name]) == ((user("q"),), ("good", "bad"))


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "messages with a rejected answer"])
def test_single_takes_the_chosen_side_of_every_form_of_a_pair(name):
    assert one(PAIRS[name], "single") == ((user("q"),), ("good",))


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "response": "good"},
        {"prompt": "q", "completion": "good"},
        {"prompt": [turn("user", "q")], "completion": [turn("assistant", "good")]},
        {"query": "q", "response": "good"},
        {"question": "q", "answer": "good"},
        {"instruction": "q", "input": "", "output": "good"},
        {"instruction": "q", "input": None, "output": "good", "history": None},
        {"messages": [turn("user", "q"), turn("assistant", "good")]},
        {"prompt": "ignored: the conversation says it all", "messages": [turn("user", "q"), turn("assistant", "good")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
    ],
)
def test_every_form_of_supervised_rows_gives_the_same_example(value):
    assert one(value, "single") == ((user("q"),), ("good",))


def test_an_alpaca_input_stands_on_the_line_after_the_instruction():
    assert one({"instruction": "Add.", "input": "2, 2", "output": "4"}, "single")[0] == (user("Add.\n2, 2"),)


def test_two_languages_load_through_a_column_map():
    value = {"question": "q", "answer_zh": "好", "answer_en": "good"}
    columns = {"question": "prompt", "answer_zh": "chosen", "answer_en": "rejected"}
    assert one(value, columns=columns) == ((user("q"),), ("好", "good"))
    assert one(value, columns={"answer_zh": "chosen", "answer_en": "rejected"}) == ((user("q"),), ("好", "good"))


def test_the_column_map_goes_before_a_column_of_that_name():
    value = {"prompt": "q", "chosen": "old", "rejected": "bad", "better": "new"}
    assert one(value, columns={"better": "chosen"})[1] == ("new", "bad")


def test_a_column_mapped_to_nothing_is_ignored():
    value = {"prompt": "a topic", **PAIRS["implicit prompt"]}
    assert one(value, columns={"prompt": None})[0] == (user("q"),)


def test_history_and_system_come_before_the_question():
    value = {
        "query": "q2",
        "response": "good",
        "rejected_response": "bad",
        "history": [["q1", "a1"]],
        "system": "Be brief.",
    }
    assert one(value)[0] == (system("Be brief."), user("q1"), assistant("a1"), user("q2"))


def test_shared_history_of_several_turns_is_the_prompt():
    value = {
        "prompt": "q1",
        "chosen": [turn("system", "s"), *HISTORY, turn("assistant", "good")],
        "rejected": [turn("system", "s"), *HISTORY, turn("assistant", "bad")],
    }
    assert one(value) == ((system("s"), user("q1"), assistant("a1"), user("q2")), ("good", "bad"))


def test_a_system_message_in_the_prompt_alone_is_kept():
    value = {**PAIRS["implicit prompt"], "prompt": [turn("system", "s"), turn("user", "q")]}
    assert one(value)[0] == (system("s"), user("q"))


def test_the_form_of_a_value_may_change_from_row_to_row():
    examples = to_examples(rows(PAIRS["text"], PAIRS["message lists"]), "paired")
    assert examples[0].prompt == examples[1].prompt == (user("q"),)


def test_answers_keep_their_whitespace():
    assert one({"prompt": "q", "chosen": " good\n", "rejected": "good"})[1] == (" good\n", "good")


def test_the_mapping_can_be_printed():
    mapping = recognise(rows({"question": "q", "chosen": "a", "rejected": "b", "id": 7}), "paired")
    assert str(mapping) == (
        "paired: prompt = 'question' (text), chosen = 'chosen' (text), rejected = 'rejected' (text); unused: id"
    )
    assert mapping.to_dict()["columns"] == {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("layout", "columns", "message"),
    [
        ("pairs", None, "'layout' is 'pairs'; expected 'paired' or 'single'"),
        ("paired", {"prompt": "promt"}, "nearest: 'prompt'"),
        ("paired", ["prompt"], "'columns' is a list; expected a map"),
    ],
)
def test_a_wrong_layout_or_map_is_the_recipes_fault(layout, columns, message):
    with pytest.raises(RecipeError, match=message):
        to_examples(rows(PAIRS["text"]), layout, columns)


def test_the_data_package_does_not_import_transformers():
    code = "import sys, preftune.data; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
