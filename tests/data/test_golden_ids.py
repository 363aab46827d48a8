"""Ids of five conversations with six real tokenizers: as recorded in golden_ids.json, and as transformers encodes them.

PREFTUNE_TEST_DATA=... python tests/data/test_golden_ids.py    records them again, after a change that is meant
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.data import generation_prompt_ids, tokenize_examples
from preftune.types import Example, Message, Origin

GOLDEN = Path(__file__).with_name("golden_ids.json")
NAMES = ("llama3", "mistral-v1", "mistral-v3", "qwen2.5", "phi3", "minimind")
CONVERSATIONS = {
    "one turn": (Message("user", "Name three rivers of Asia."),),
    "several turns": (
        Message("user", "Hi! I'm Ana."),
        Message("assistant", "Hello Ana, nice to meet you."),
        Message("user", "What's my name?\n\nOne word, please."),
    ),
    "system": (Message("system", "You answer in one line."), Message("user", "  Why is the sky blue?  ")),
    "unicode": (Message("user", "用一句话解释 “naïve Bayes” 👩‍🔬🙂 — ½ ﬁ é"),),
    "empty system": (Message("system", ""), Message("user", "def f(x):\n\treturn x ** 2")),
}
ANSWERS = ("The Yangtze, the Mekong\nand the Ganges.", "我不知道 🤷 — sorry ")


def build(name: str) -> Example:
    return Example(CONVERSATIONS[name], ANSWERS, Origin("golden", "train", 1))


def encode(tokenizer, conversation: str) -> dict[str, list[int]]:
    (group,), _ = tokenize_examples([build(conversation)], tokenizer)
    return {"prompt": group.prompt_ids, "chosen": group.response_ids[0], "rejected": group.response_ids[1]}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_as_recorded(real_tokenizer, name, conversation):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert encode(real_tokenizer(name), conversation) == golden[name][conversation]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_response_are_what_transformers_encodes_in_one_piece(real_tokenizer, name, conversation):
    tokenizer = real_tokenizer(name)
    ids = encode(tokenizer, conversation)
    turns = [{"role": message.role, "content": message.content} for message in CONVERSATIONS[conversation]]
    if name == "mistral-v3" and turns[0]["role"] == "system":  # its template refuses the role
        turns = [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}".removeprefix("\n\n")}]
    for answer, response in zip(ANSWERS, (ids["chosen"], ids["rejected"]), strict=True):
        whole = [*turns, {"role": "assistant", "content": answer}]
        theirs = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        ours = ids["prompt"] + response
        if ours[0] == tokenizer.bos_token_id != theirs[0]:
            ours = ours[1:]
        assert theirs[: len(ours)] == ours
        assert not tokenizer.decode(theirs[len(ours) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", NAMES)
def test_generation_gets_the_recorded_prompt(real_tokenizer, name):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for conversation, messages in CONVERSATIONS.items():
        assert generation_prompt_ids(real_tokenizer(name), messages) == golden[name][conversation]["prompt"]


def record() -> None:
    from conftest import load_real_tokenizer

    golden = {name: {c: encode(load_real_tokenizer(name), c) for c in CONVERSATIONS} for name in NAMES}
    lines = json.dumps(golden, indent=1).replace("\n    ", " ").replace("[ ", "[").replace("\n   ]", "]")
    GOLDEN.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
