"""Ids on disk and several processes give what one process gives without a disk."""

from __future__ import annotations

import logging
import os

import pytest

from preftune.data import tokenize_examples
from preftune.types import Example, Message, Origin


@pytest.fixture
def rows(example):
    return [example("q" * (1 + n % 7), f"good {n}", "bad", row=n + 1) for n in range(2500)]


def test_a_second_call_reads_what_the_first_wrote(byte_tokenizer, rows, chatml, tmp_path, caplog):
    tokenizer = byte_tokenizer(chatml)
    plain = tokenize_examples(rows, tokenizer, max_length=40)
    first = tokenize_examples(rows, tokenizer, max_length=40, cache=tmp_path)
    assert "come from" not in caplog.text
    with caplog.at_level(logging.INFO, logger="preftune"):
        second = tokenize_examples(rows, tokenizer, max_length=40, cache=tmp_path)
    assert "token ids of 2500 rows come from" in caplog.text
    assert first == second == plain
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_limits_share_a_file_and_whatever_shapes_ids_has_its_own(byte_tokenizer, rows, chatml, tmp_path):
    def files(tokenizer, examples=rows[:5], **settings):
        tokenize_examples(examples, tokenizer, cache=tmp_path, **settings)
        return len(list(tmp_path.iterdir()))

    assert files(byte_tokenizer(chatml)) == 1
    assert files(byte_tokenizer(chatml), max_length=30) == 1
    assert files(byte_tokenizer(chatml), max_length=300, truncation="drop") == 1
    assert files(byte_tokenizer(" " + chatml)) == 2
    assert files(byte_tokenizer(chatml, adds_bos=True)) == 3
    assert files(byte_tokenizer(chatml, eos_token="<|im_end|>")) == 4
    assert files(byte_tokenizer(chatml), tokenization="princeton") == 5
    assert files(byte_tokenizer(chatml), rows[:4]) == 6
    assert files(byte_tokenizer(chatml), [*rows[:4], rows[0]]) == 7


def test_texts_do_not_run_into_each_other(byte_tokenizer, tmp_path):
    def row(prompt: str, answer: str) -> list[Example]:
        return [Example((Message("user", prompt),), (answer,), Origin("x", "train", 1))]

    tokenizer = byte_tokenizer(None)
    tokenize_examples(row("ab", "c"), tokenizer, cache=tmp_path)
    (group,), _ = tokenize_examples(row("a", "bc"), tokenizer, cache=tmp_path)
    assert (len(group.prompt_ids), len(group.response_ids[0])) == (1, 3)


def test_origins_and_scores_are_those_of_the_rows_at_hand(byte_tokenizer, tmp_path):
    def read(dataset: str, score: float):
        row = Example((Message("user", "q"),), ("a",), Origin(dataset, "train", 9), (score,))
        return tokenize_examples([row], byte_tokenizer(None), cache=tmp_path)[0][0]

    assert (read("a.jsonl", 1.0).scores, read("b.jsonl", 0.0).scores) == ((1.0,), (0.0,))
    assert read("c.jsonl", 0.0).origin.dataset == "c.jsonl"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_rows_are_remembered_with_what_is_wrong(byte_tokenizer, example, tmp_path):
    rows = [example("q", "a", row=1), example("q", "</s>", row=2)]
    for _ in range(2):
        groups, report = tokenize_examples(rows, byte_tokenizer(None), on_bad_row="skip", cache=tmp_path)
        assert len(groups) == 1
        assert [origin.row for origin in report.dropped["bad rows"]] == [2]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_file_is_made_again(byte_tokenizer, rows, chatml, tmp_path, damage, caplog):
    tokenizer = byte_tokenizer(chatml)
    plain, _ = tokenize_examples(rows[:50], tokenizer, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert tokenize_examples(rows[:50], tokenizer, cache=tmp_path)[0] == plain
    assert "cannot be read" in caplog.text
    assert path.stat().st_size == len(whole)


def test_no_rows_can_be_kept(byte_tokenizer, tmp_path):
    for _ in range(2):
        assert tokenize_examples([], byte_tokenizer(None), cache=tmp_path)[0] == []


def test_several_processes_give_the_rows_of_one_in_order(byte_tokenizer, rows, chatml):
    tokenizer = byte_tokenizer(chatml)
    seen: list[tuple[int, int]] = []
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    many = tokenize_examples(rows, tokenizer, num_proc=2, progress=lambda done, total: seen.append((done, total)))
    assert many == tokenize_examples(rows, tokenizer)
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
