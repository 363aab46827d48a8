"""`weight` and `tools` columns, tool calls and results: read, carried to the ids, or refused with the row."""

from __future__ import annotations

import json

import pytest

from preftune.data import Row, to_examples, tokenize_examples
from preftune.data.bad_rows import Problem, SkippedRows
from preftune.errors import DataError
from preftune.types import Layout, Origin

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = [{"type": "function", "function": WEATHER}]
PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CHAT = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi", "name": "weather"},
]


def rows(*values: dict) -> list[Row]:
    return [Row(value, Origin("t.jsonl", "train", number)) for number, value in enumerate(values, 1)]


def read(value: dict, layout: Layout = Layout.PAIRED, **arguments):
    return to_examples(rows(value), layout, **arguments)


@pytest.mark.parametrize("weight", [0, 0.5, 2, "0.25"])
def test_a_weight_goes_with_the_row_to_the_group(weight, byte_tokenizer):
    examples = read(PAIR | {"weight": weight})
    groups, _ = tokenize_examples(examples, byte_tokenizer())
    assert [examples[0].weight, groups[0].weight] == [float(weight), float(weight)]


@pytest.mark.parametrize("layout", [Layout.SINGLE, Layout.UNPAIRED, Layout.RANKED, Layout.PAIRED])
def test_every_row_that_is_made_of_a_pair_has_its_weight_and_tools(layout):
    examples = read(PAIR | {"weight": 3, "tools": [WEATHER]}, layout)
    assert {example.weight for example in examples} == {3.0}
    assert {example.tools for example in examples} == {json.dumps(WRAPPED)}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), None, "much", True, [1]], ids=str)
def test_a_weight_that_is_none_is_refused_with_its_row(weight):
    with pytest.raises(
        DataError, match=r"^t\.jsonl\[train\] row 1: 'weight' is .* columns: \{weight: null\}|Fill it in"
    ):
        read(PAIR | {"weight": weight})


def test_a_weight_that_is_ignored_is_not_looked_at():
    assert read(PAIR | {"weight": "much"}, columns={"weight": None})[0].weight == 1.0


def test_cached_ids_have_the_weights_of_this_run(tmp_path, byte_tokenizer):
    for weight in (2.0, 5.0):
        groups, _ = tokenize_examples(read(PAIR | {"weight": weight}), byte_tokenizer(), cache=tmp_path)
        assert groups[0].weight == weight
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("tools", [WRAPPED, json.dumps(WRAPPED), [WEATHER], [WEATHER | {"strict": None}]], ids=str)
def test_tools_are_read_in_one_form(tools):
    assert read(PAIR | {"tools": tools})[0].tools == json.dumps(WRAPPED)


@pytest.mark.parametrize("tools", [None, [], "", "[]"], ids=str)
def test_a_row_may_have_no_tools(tools):
    assert read(PAIR | {"tools": tools})[0].tools == ""


@pytest.mark.parametrize("tools", ["{", 5, {"name": "x"}, ["x"], [{"description": "x"}]], ids=str)
def test_tools_that_are_none_are_refused_with_their_row(tools):
    with pytest.raises(DataError, match=r"^t\.jsonl\[train\] row 1: 'tools': .*columns: \{tools: null\}"):
        read(PAIR | {"tools": tools})


def test_bad_tools_are_counted_where_bad_rows_are_skipped():
    skipped = SkippedRows()
    kept = to_examples(rows(PAIR, PAIR | {"tools": "{"}), Layout.PAIRED, on_bad_row="skip", skipped=skipped)
    assert (len(kept), skipped.counts) == (1, {Problem.WRONG_TOOLS: 1})


def test_an_answer_that_is_a_tool_call_is_refused_with_its_row():
    chosen = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    with pytest.raises(DataError, match=r"row 1: the answer in 'chosen' is a tool call, and answers are read as text"):
        read(PAIR | {"chosen": chosen})


@pytest.mark.parametrize(
    "call",
    [{"function": {"arguments": {}}}, {"name": "x", "arguments": "{"}, {"name": "x", "arguments": "[1]"}],
    ids=str,
)
def test_a_broken_tool_call_is_refused_with_its_row(call):
    prompt = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, CHAT[2]]
    with pytest.raises(DataError, match=r"^t\.jsonl\[train\] row 1: the tool_calls of 'prompt' message 2"):
        read(PAIR | {"prompt": prompt})


@pytest.mark.parametrize("template", ["chatml", None], ids=["chatml", "base"])
def test_a_template_that_drops_calls_refuses_the_row(template, byte_tokenizer, chatml):
    tokenizer = byte_tokenizer(chatml if template else None)
    with pytest.raises(DataError, match=r"^t\.jsonl\[train\] row 1: the conversation has tool calls or results"):
        tokenize_examples(read(PAIR | {"prompt": CHAT}), tokenizer)


def test_a_template_without_tools_says_so_once(byte_tokenizer, chatml, caplog):
    examples = to_examples(rows(*[PAIR | {"tools": [WEATHER]}] * 3), Layout.PAIRED)
    tokenize_examples(examples, byte_tokenizer(chatml))
    said = [record.getMessage() for record in caplog.records if "does not write tools" in record.getMessage()]
    assert len(said) == 1
    assert "those of 3 rows" in said[0]


def test_a_real_template_gets_tools_calls_and_results_as_transformers_gives_them(real_tokenizer):
    tokenizer = real_tokenizer("qwen2.5")
    examples = read(PAIR | {"prompt": CHAT, "tools": [WEATHER]})
    groups, _ = tokenize_examples(examples, tokenizer)
    call = CALL | {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, CHAT[2]]
    text = tokenizer.apply_chat_template(turns, tools=WRAPPED, tokenize=False, add_generation_prompt=True)
    assert all(word in text for word in ("Tells it.", "Rome", "sunny"))
    assert groups[0].prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
