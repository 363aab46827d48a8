"""Every form a preference file comes in, and what is made of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from preftune.data import Row, recognise, to_examples
from preftune.errors import DataError, RecipeError
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
TRANSCRIPT = "\n\nHuman: q\n\nAssistant: "
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
    "messages with a rejected conversation": {
        "messages": [turn("user", "q"), turn("assistant", "good")],
        "rejected_messages": [turn("user", "q"), turn("assistant", "bad")],
    },
    "role and text": {
        "context": [{"role": "human", "text": "q"}],
        "chosen": {"role": "assistant", "text": "good"},
        "rejected": {"role": "assistant", "text": "bad"},
    },
    "role and text, the context as a Python literal": {
        "context": "[{'role': 'human', 'text': 'q'}]",
        "chosen": {"role": "assistant", "text": "good"},
        "rejected": {"role": "assistant", "text": "bad"},
    },
    "role and text in a table": {
        "context": "[{'role': 'human', 'text': 'q'}]",
        "chosen.text": "good",
        "rejected.text": "bad",
    },
    "conversations as JSON text": {
        "chosen": json.dumps([turn("user", "q"), turn("assistant", "good")]),
        "rejected": json.dumps([turn("user", "q"), turn("assistant", "bad")]),
    },
    "content in parts": {
        "chosen_messages": [turn("user", "q"), turn("assistant", [{"type": "text", "value": "good"}])],
        "rejected_messages": [
            {"role": "user", "content": "q", "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "ad"}]},
        ],
    },
    "transcripts": {"chosen": TRANSCRIPT + "good", "rejected": TRANSCRIPT + "bad "},
    "transcripts without blank lines in front": {
        "chosen": "Human: q\n\nAssistant: good",
        "rejected": TRANSCRIPT + "bad",
    },
    "a transcript as prompt": {"prompt": TRANSCRIPT, "chosen": "good", "rejected": "bad"},
    "question and two answers": {"question": "q", "response_j": "good", "response_k": "bad"},
    "chosen_response": {"instruction": "q", "chosen_response": "good", "rejected_response": "bad", "metadata": {}},
    "conversations beside the prompt as text": {
        "prompt": "q",
        "conversations": [{"from": "prompter", "value": "q"}],
        "chosen": "good",
        "rejected": "bad",
    },
    "response_chosen": {
        "system": "",
        "history": [],
        "question": "q",
        "response_chosen": "good",
        "response_rejected": "bad",
    },
    "one rejected answer in a list": {"prompt": "q", "chosen": "good", "rejected": ["bad"]},
    "output_2 is better": {"input": "q", "output_1": "bad", "output_2": "good", "label": 2},
    "output_1 is better": {"instruction": "q", "output_1": "good", "output_2": "bad", "preference": 1.2},
    "model_b is better": {
        "conversation_a": [turn("user", "q"), turn("assistant", "bad")],
        "conversation_b": [turn("user", "q"), turn("assistant", "good")],
        "winner": "model_b",
    },
    "better_response_id": {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    "two of three annotators": {
        "instruction": "q",
        "input": "",
        "response1": "good",
        "response2": "bad",
        "annotator1": 1,
        "annotator2": 2,
        "annotator3": 1,
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_form_of_a_pair_gives_the_same_example(name):
    assert one(PAIRS[name]) == ((user("q"),), ("good", "bad"))


@pytest.mark.parametrize("name", PAIRS)
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
        {"conversation": [{"human": "q", "assistant": "good"}]},
        {"input": "q", "output": "good"},
        {"completion": TRANSCRIPT + "good"},
        {"system_prompt": "", "prompt": "q", "response": "good", "weight": 0.5, "tools": []},
    ],
)
def test_every_form_of_supervised_rows_gives_the_same_example(value):
    assert one(value, "single") == ((user("q"),), ("good",))


def test_an_alpaca_input_stands_on_the_line_after_the_instruction():
    assert one({"instruction": "Add.", "input": "2, 2", "output": "4"}, "single")[0] == (user("Add.\n2, 2"),)


def test_a_context_completes_an_instruction_and_is_a_prompt_where_there_is_none():
    assert one({"instruction": "Add.", "context": "2, 2", "response": "4"}, "single")[0] == (user("Add.\n2, 2"),)
    assert one({"context": "2 + 2?", "response": "4"}, "single")[0] == (user("2 + 2?"),)


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


def test_the_log_says_what_was_understood(caplog):
    caplog.set_level(logging.INFO, "preftune")
    to_examples(rows({"question": "q", "chosen": "a", "rejected": "b"}), "paired")
    assert "x.jsonl[train]: read as paired: prompt = 'question' (text), chosen = 'chosen' (text)" in caplog.text


# --- transcripts


def test_a_transcript_of_several_turns_keeps_its_history_and_joins_turns_of_one_speaker():
    history = "\n\nHuman: q1\n\nAssistant: Wait.\n\nAssistant:  a1\nHuman: no turn\n\nHuman:q2"
    value = {"chosen": f"{history}\n\nAssistant:\ngood\n\nindeed", "rejected": f"{history}\n\nAssistant: bad"}
    assert one(value) == (
        (user("q1"), assistant("Wait.\n\na1\nHuman: no turn"), user("q2")),
        ("good\n\nindeed", "bad"),
    )


def test_an_answer_that_quotes_a_dialogue_stays_an_answer():
    plain = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    quoting = {"prompt": "Write a dialogue.", "chosen": TRANSCRIPT + "hello", "rejected": "bad"}
    examples = to_examples(rows(plain, quoting), "paired")
    assert examples[1].prompt == (user("Write a dialogue."),)
    assert examples[1].responses[0] == TRANSCRIPT + "hello"


def test_a_row_that_is_no_transcript_among_transcripts_is_refused():
    good = PAIRS["transcripts"]
    values = rows(*[good] * 8, {**good, "rejected": "bad"})
    with pytest.raises(DataError, match=r"row 9: 'rejected' is text .*expected a transcript that starts with 'Human:'"):
        to_examples(values, "paired")


def test_transcripts_that_part_before_the_last_answer_have_different_prompts():
    value = {"chosen": TRANSCRIPT + "good", "rejected": TRANSCRIPT + "Wait.\n\nHuman: why\n\nAssistant: bad"}
    with pytest.raises(DataError, match="'chosen' and 'rejected' start with different prompts"):
        to_examples(rows(value), "paired")


# --- several rejected answers


SEVERAL = {"prompt": "q", "chosen": "good", "rejected": ["bad", "worse"]}


@pytest.mark.parametrize("layout", ["paired", "ranked"])
def test_several_rejected_answers_are_several_pairs(layout):
    examples = to_examples(rows(SEVERAL, PAIRS["text"]), layout)
    assert [example.responses for example in examples] == [("good", "bad"), ("good", "worse"), ("good", "bad")]
    assert [example.origin.row for example in examples] == [1, 1, 2]


def test_several_rejected_messages_are_several_pairs():
    value = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": [{"from": "gpt", "value": "bad"}, {"from": "gpt", "value": "worse"}],
    }
    assert [e.responses for e in to_examples(rows(value), "paired")] == [("good", "bad"), ("good", "worse")]


def test_answers_of_several_turns_go_on_where_the_prompt_ends():
    more = [turn("assistant", "a"), turn("user", "r")]
    value = {
        "prompt": [turn("user", "q")],
        "chosen": [*more, turn("assistant", "good")],
        "rejected": [*more, turn("assistant", "bad")],
    }
    (example,) = to_examples(rows(value), "paired")
    assert [message.content for message in example.prompt] == ["q", "a", "r"]
    assert example.responses == ("good", "bad")


def test_several_rejected_conversations_share_their_history_with_the_chosen_one():
    history = [turn("user", "q")]
    value = {
        "chosen": [*history, turn("assistant", "good")],
        "rejected": [[*history, turn("assistant", "bad")], [*history, turn("assistant", "worse")]],
    }
    assert [e.responses for e in to_examples(rows(value), "paired")] == [("good", "bad"), ("good", "worse")]


def test_of_several_rejected_answers_the_chosen_one_is_desirable_once():
    examples = to_examples(rows(SEVERAL), "unpaired")
    assert [(e.responses, e.scores) for e in examples] == [
        (("good",), (1.0,)),
        (("bad",), (0.0,)),
        (("worse",), (0.0,)),
    ]
    assert [e.responses for e in to_examples(rows(SEVERAL), "single")] == [("good",)]


# --- the mapping


def test_the_mapping_says_in_which_form_the_rows_stand():
    transcripts = recognise(rows(PAIRS["transcripts"]), "paired")
    assert (
        str(transcripts)
        == "paired from transcripts: chosen = 'chosen' (transcript), rejected = 'rejected' (transcript)"
    )
    compared = recognise(rows({**PAIRS["output_2 is better"], "weight": 1, "tools": []}), "unpaired")
    assert str(compared) == (
        "unpaired from two answers and a winner: prompt = 'input' (text), answer_1 = 'output_1' (text), "
        "answer_2 = 'output_2' (text), winner = 'label' (number), weight = 'weight' (number), tools = 'tools' (list)"
    )
    assert compared.to_dict() == {
        "layout": "unpaired",
        "form": "two answers and a winner",
        "columns": {"prompt": "input", "answer_1": "output_1", "answer_2": "output_2", "winner": "label"}
        | {"weight": "weight", "tools": "tools"},
        "kinds": {"prompt": "text", "answer_1": "text", "answer_2": "text", "winner": "number"}
        | {"weight": "number", "tools": "list"},
        "unused": [],
    }
    split = recognise(rows(PAIRS["text"]), "unpaired")
    assert str(split).startswith("unpaired from paired rows: prompt = 'prompt' (text)")


@pytest.mark.parametrize(
    ("layout", "columns", "message"),
    [
        ("pairs", None, "'layout' is 'pairs'; expected one of single, paired, unpaired, ranked"),
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
