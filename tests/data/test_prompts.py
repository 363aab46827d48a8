"""Prompts of any source: rows with answers, whose answers are left out, and rows without."""

import json

import pytest

from preftune.data import load_preferences
from preftune.errors import DataError
from preftune.types import Message

USER = (Message("user", "Why?"),)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
HISTORY = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
ANSWER = {"role": "assistant", "content": "So."}

ROWS = {
    "a prompt alone": ({"prompt": "Why?"}, USER),
    "a question alone": ({"question": "Why?"}, USER),
    "an instruction with its input": ({"instruction": "Add.", "input": "1 2"}, (Message("user", "Add.\n1 2"),)),
    "messages that end with the user": ({"messages": TALK}, HISTORY),
    "messages that end with an answer": ({"messages": [*TALK, ANSWER]}, HISTORY),
    "a prompt of messages": ({"prompt": TALK}, HISTORY),
    "a pair": ({"prompt": "Why?", "chosen": "a", "rejected": "b"}, USER),
    "a pair of equal answers": ({"prompt": "Why?", "chosen": "a", "rejected": "a"}, USER),
    "a pair with an empty answer": ({"prompt": "Why?", "chosen": "", "rejected": None}, USER),
    "a pair of conversations": ({"chosen": [*TALK, ANSWER], "rejected": [*TALK, ANSWER]}, HISTORY),
    "an answer and a label": ({"prompt": "Why?", "completion": "a", "label": True}, USER),
    "ranked answers": ({"prompt": "Why?", "responses": ["a", "b"], "scores": [1, 2]}, USER),
    "a system text": ({"system": "Be brief.", "prompt": "Why?"}, (Message("system", "Be brief."), *USER)),
}


def read(tmp_path, *rows, **more):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_preferences(path, layout="prompt", **more)


@pytest.mark.parametrize("name", ROWS)
def test_the_prompt_of(name, tmp_path):
    row, prompt = ROWS[name]
    (example,) = read(tmp_path, row)
    assert example.prompt == prompt
    assert example.responses == () and example.scores == ()


def test_rows_without_a_prompt_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="there is no 'prompt' column"):
        read(tmp_path, {"text_of_it": "Why?"})
    with pytest.raises(DataError, match="there is no prompt"):
        read(tmp_path, {"chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match="the prompt is empty"):
        read(tmp_path, {"prompt": " "})


def test_a_prompt_is_held_out_whole(tmp_path):
    rows = [{"prompt": f"Why {number}?"} for number in (1, 1, 2, 3, 4)]
    (train,) = {len(read(tmp_path, *rows, test_split_size=1))}
    held = read(tmp_path, *rows, test_split_size=1, split="test")
    assert train == 4 and len(held) == 1
