"""Published preference files, read with one call: what was recognised, and the first row in plain sight."""

# ruff: noqa: E501 - the table is easier to read with one file a line
from __future__ import annotations

import pytest

from preftune.data import load_preferences, load_rows, recognise, tokenize_examples
from preftune.errors import DataError
from preftune.types import Layout

# file: (layout, mapping, rows, opening of the last prompt message, of the first answer)
FILES = {
    "ultrafeedback/flat_eval.eval.jsonl.gz": ("paired", "prompt = 'prompt' (text), chosen = 'chosen' (text), rejected = 'rejected' (text); unused: source_index, metadata", 30, "In this task, you are given a sentence. ", "blood vessel"),
    "emoji/dpo_emoji_english_gpt.eval.jsonl": ("paired", "prompt = 'prompt' (messages), chosen = 'chosen' (messages), rejected = 'rejected' (messages)", 46, "Can you tell me a fun fact about dolphin", "Did you know dolphins have names for eac"),
    "llamafactory/dpo_en_demo.eval.jsonl": ("paired", "prompt = 'conversations' (messages), chosen = 'chosen' (message), rejected = 'rejected' (message)", 33, "Drawing from the societal norms and valu", 'If "Pride and Prejudice" was set in the '),
    "tulu/preference_sample.eval.jsonl": ("paired", "prompt = 'prompt' (text), chosen = 'chosen' (messages), rejected = 'rejected' (messages); unused: id, source", 10, "Include keywords hydatogenous, myosclero", "To determine the number of continuous su"),
    "medicalgpt/dpo_zh_500_question_history.eval.jsonl.gz": ("paired", "prompt = 'question' (text), chosen = 'chosen' (text), rejected = 'rejected' (text), history = 'history' (messages), system = 'system' (text)", 45, "在每个类别和子类别下，添加3个项目符号，说明如何拆分并增加价值", "科技的发展和其革命性潜力让人惊叹"),
    "llamafactory/alpaca_en_demo_sft.eval.jsonl": ("single", "prompt = 'instruction' (text), response = 'output' (text), input = 'input' (text)", 101, "Transform the following sentence using a", "The car accelerated rapidly."),
    "lima/lima_sft.eval.jsonl.gz": ("single", "prompt = 'instruction' (text), response = 'output' (text), input = 'input' (text), history = 'history' (messages)", 100, "Can brain cells move? By movement I mean", "The question is relatively broad and one"),
    "llamafactory/kto_en_demo.eval.jsonl": ("single", "response = 'messages' (messages); unused: label", 36, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_published_file_is_understood_and_encoded(data_folder, real_tokenizer, file):
    layout, mapping, count, question, answer = FILES[file]
    path = data_folder / "preferences" / file
    assert str(recognise(load_rows(path), layout)) == f"{layout}: {mapping}"
    examples = load_preferences(path, layout=layout)
    assert len(examples) == count
    assert examples[0].prompt[-1].content.startswith(question)
    assert examples[0].responses[0].startswith(answer)
    groups, report = tokenize_examples(examples, real_tokenizer("llama3"), max_length=512, max_prompt_length=256)
    assert report.rows == count
    assert all(group.prompt_ids[0] == 128000 and group.prompt_ids.count(128000) == 1 for group in groups)
    assert all(len(group.prompt_ids) + len(ids) <= 512 for group in groups for ids in group.response_ids)


@pytest.mark.parametrize(
    ("file", "layout", "message"),
    [
        ("ultrafeedback/flat_train.eval.jsonl.gz", Layout.PAIRED, "row 53: the answer in 'rejected' is empty"),
        ("ultrafeedback/flat_eval.train.jsonl.gz", Layout.PAIRED, "row 25: 'chosen' and 'rejected' are the same"),
        ("autoj/pairwise.eval.jsonl.gz", Layout.PAIRED, "row 1: there is no 'chosen' column"),
        ("hh-rlhf/harmless-base.eval.jsonl.gz", Layout.PAIRED, "row 1: there is no prompt"),
    ],
)
def test_bad_rows_of_published_files_are_named(data_folder, file, layout, message):
    with pytest.raises(DataError, match=message):
        load_preferences(data_folder / "preferences" / file, layout=layout)


def test_a_folder_of_published_files_is_read_by_split(data_folder):
    emoji = data_folder / "preferences" / "llamafactory"
    assert {row.origin.dataset for row in load_rows(emoji, "train")}.isdisjoint(
        row.origin.dataset for row in load_rows(emoji, "eval")
    )
