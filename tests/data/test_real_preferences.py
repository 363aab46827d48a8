"""Published preference files, read with one call: what was recognised, and the first row in plain sight."""

# ruff: noqa: E501 - the table is easier to read with one file a line
from __future__ import annotations

from collections import Counter

import pytest

from preftune.data import class_balance, load_preferences, load_rows, recognise, to_examples, tokenize_examples
from preftune.data.plan import Cut
from preftune.errors import DataError
from preftune.train.loader import StepSource
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
    "llamafactory/kto_en_demo.eval.jsonl": ("unpaired", "response = 'messages' (messages), label = 'label' (true or false)", 36, "This task is to identify the language of", "Thank you for the question! I'm just an "),
    "llamafactory/kto_mix_test_alpaca.eval.jsonl.gz": ("unpaired", "prompt = 'instruction' (text), response = 'output' (text), label = 'tag' (true or false)", 110, "Please provide an in-depth analysis of t", "Hello there! As a helpful and respectful"),
    "oasst-zh/oaast_rm_zh.eval.jsonl.gz": ("ranked", "prompt = 'instruction' (text), responses = 'output' (list), input = 'input' (text), history = 'history' (messages)", 64, "我想用 python 读取一个 jsonl 文件", "下面是在 Python 中读取 JSONL"),
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


# file: desirable and undesirable rows, and those of the pairs that it holds
LABELLED = {
    "llamafactory/kto_en_demo.train.jsonl": (100, 95),
    "llamafactory/kto_en_demo.eval.jsonl": (18, 18),
    "llamafactory/kto_mix_test_alpaca.train.jsonl.gz": (355, 355),
    "llamafactory/kto_mix_test_alpaca.eval.jsonl.gz": (55, 55),
    "llamafactory/dpo_zh_demo.train.jsonl": (192, 192),
    "emoji/dpo_emoji_english_gpt.train.jsonl": (301, 301),
    "ultrafeedback/flat_eval.eval.jsonl.gz": (30, 30),
    "medicalgpt/dpo_zh_500_question_history.eval.jsonl.gz": (45, 45),
    "tulu/preference_sample.train.jsonl": (60, 60),
}


@pytest.mark.parametrize("file", LABELLED)
def test_published_files_as_labelled_rows(data_folder, file):
    balance = class_balance(load_preferences(data_folder / "preferences" / file, layout="unpaired"))
    assert (balance.desirable, balance.undesirable) == LABELLED[file]
    assert balance.balanced


def test_a_published_ranked_file_in_every_layout_that_takes_it(data_folder, real_tokenizer):
    path = data_folder / "preferences/oasst-zh/oaast_rm_zh.eval.jsonl.gz"
    ranked = load_preferences(path, layout="ranked")
    assert Counter(len(example.responses) for example in ranked) == {2: 33, 3: 26, 4: 2, 5: 2, 8: 1}
    pairs = load_preferences(path, layout="paired")
    assert [pair.responses for pair in pairs] == [(row.responses[0], row.responses[-1]) for row in ranked]
    every = load_preferences(path, layout="paired", ranked_pairs="all")
    assert len(every) == 33 * 1 + 26 * 3 + 2 * 6 + 2 * 10 + 28 == 171
    assert [row.responses for row in load_preferences(path, layout="single")] == [row.responses[:1] for row in ranked]
    groups, report = tokenize_examples(ranked, real_tokenizer("qwen2.5"), max_length=256)
    assert list(report.lengths) == ["prompt", *(f"rank {k}" for k in range(8))]
    assert report.responses_cut > 0
    assert [len(group.response_ids) for group in groups] == [len(row.responses) for row in ranked]
    assert all(len(group.prompt_ids) + len(ids) <= 256 for group in groups for ids in group.response_ids)


@pytest.mark.parametrize(
    ("file", "count"), [("emoji/dpo_emoji_english_gpt.train.jsonl", 301), ("llamafactory/dpo_en_demo.eval.jsonl", 33)]
)
def test_published_pairs_as_ranked_rows_are_the_same_examples(data_folder, file, count):
    path = data_folder / "preferences" / file
    assert load_preferences(path, layout="ranked") == load_preferences(path)
    assert len(load_preferences(path)) == count


@pytest.mark.parametrize(
    ("file", "layout", "message"),
    [
        ("ultrafeedback/flat_train.eval.jsonl.gz", Layout.PAIRED, "row 53: the answer in 'rejected' is empty"),
        ("ultrafeedback/flat_eval.train.jsonl.gz", Layout.PAIRED, "row 25: 'chosen' and 'rejected' are the same"),
        ("autoj/pairwise.eval.jsonl.gz", Layout.PAIRED, "row 1: the numbers in 'label' do not say by themselves"),
        ("autoj/pairwise.eval.jsonl.gz", Layout.UNPAIRED, "row 1: the numbers in 'label' do not say by themselves"),
        ("pandalm/testset.eval.jsonl", Layout.RANKED, "row 9: 'annotator1' and .* call it a tie"),
        ("hh-rlhf/harmless-base.train.jsonl.gz", Layout.PAIRED, "row 353: the answer in '.*' is empty"),
        ("hh-rlhf/helpful-base.train.jsonl.gz", Layout.UNPAIRED, "row 116: .* start with different prompts"),
        ("text/tinystories.jsonl", Layout.SINGLE, "row 1: there is no 'response' column"),
        ("llamafactory/kto_en_demo.train.jsonl", Layout.PAIRED, "row 1: the rows are unpaired.*Set objective: kto"),
        ("llamafactory/kto_mix_test_alpaca.train.jsonl.gz", Layout.PAIRED, "row 1: the rows are unpaired.*'tag'"),
        ("llamafactory/alpaca_en_demo_sft.eval.jsonl", Layout.UNPAIRED, "row 1: there is no 'label' column"),
        ("oasst-zh/oaast_rm_zh.eval.jsonl.gz", Layout.UNPAIRED, "row 1: the rows are ranked.*'output'"),
        ("oasst-zh/oaast_rm_zh.train.jsonl.gz", Layout.RANKED, "row 196: items 1 and 2 of 'output' are the same"),
        ("emoji/dpo_emoji_english_sharegpt_simple.eval.jsonl", Layout.UNPAIRED, "row 1: 'chosen' and 'rejected' are"),
        ("ultrafeedback/flat_train.eval.jsonl.gz", Layout.UNPAIRED, "row 53: the answer in 'rejected' is empty"),
    ],
)
def test_bad_rows_of_published_files_are_named(data_folder, file, layout, message):
    with pytest.raises(DataError, match=message):
        load_preferences(data_folder / "preferences" / file, layout=layout)


def test_the_bad_rows_of_the_published_ranked_file_are_these_four(data_folder):
    bad = []
    for row in load_rows(data_folder / "preferences/oasst-zh/oaast_rm_zh.train.jsonl.gz"):
        try:
            to_examples([row], "ranked")
        except DataError:
            bad.append(row.origin.row)
    assert bad == [196, 205, 206, 515]


def test_a_folder_of_published_files_is_read_by_split(data_folder):
    emoji = data_folder / "preferences" / "llamafactory"
    assert {row.origin.dataset for row in load_rows(emoji, "train")}.isdisjoint(
        row.origin.dataset for row in load_rows(emoji, "eval")
    )


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_real_pairs_are_dealt_out_evenly_over_ranks(data_folder, real_tokenizer, ranks):
    examples = load_preferences(data_folder / "preferences/llamafactory/dpo_en_demo.train.jsonl", layout="paired")
    groups, _ = tokenize_examples(examples, real_tokenizer("llama3"), max_length=2048, max_prompt_length=1024)
    assert len(groups) == 193
    assert StepSource(groups, 128, Cut(), seed=1, ranks=ranks).uneven_share() < 0.05
