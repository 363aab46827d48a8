"""Sampling by servers that a local one plays."""

from __future__ import annotations

import shutil

import pytest

from preftune.cli.main import main
from preftune.data import read_chat_format
from preftune.model.load import load_tokenizer
from preftune.types import Message
from tests.endpoint.server import Script, serving
from tests.onpolicy.conftest import QUESTIONS, read_rows


def sample(url, prompts, output, *more):
    words = ["sample", "served", str(prompts), "--output", str(output), "--seeds", "3", "4", "--endpoint", url, *more]
    return main(words)


def test_conversations_are_sent_once_a_seed_with_the_settings(prompts, tmp_path, capsys):
    script = Script("busy", "page")
    with serving(script) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", "--max-tokens", "9", "--top-k", "7") == 0

    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == QUESTIONS
    assert rows[0]["responses"] == ["re: Where is Rome?"] * 2
    assert rows[0]["sampled"] == {
        "seeds": [3, 4], "finish": ["stop"] * 2, "tokens": [5, 5], "prompt_tokens": None, "empty": []
    }  # fmt: skip
    assert len(script.counts) == 14  # two of them asked twice: a busy server, a page that is no reply
    assert len(script.asked) == 16
    assert script.asked[0] == {
        "model": "served", "messages": [{"role": "user", "content": script.asked[0]["messages"][0]["content"]}],
        "temperature": 0.8, "top_p": 0.95, "max_tokens": 9, "seed": script.asked[0]["seed"], "top_k": 7,
    }  # fmt: skip


def test_with_a_tokenizer_the_ids_of_training_are_sent(chat_model, prompts, tmp_path):
    script = Script()
    with serving(script) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", "--tokenizer", str(chat_model), "--limit", "1") == 0

    (ids,) = read_chat_format(load_tokenizer(str(chat_model))).prompt_ids([[Message("user", QUESTIONS[0])]])
    assert [body["prompt"] for body in script.asked] == [ids, ids]
    assert ids.count(256) == 1
    assert script.asked[0]["stop"] == ["<|im_end|>"]


@pytest.mark.parametrize("more", [[], ["--system", ""]])
def test_with_the_tokenizer_of_a_run_the_ids_have_its_system_text(chat_model, prompts, tmp_path, more):
    shutil.copytree(chat_model, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("system_prompt: Be brief.\n")
    script = Script()
    with serving(script) as url:
        words = ["--tokenizer", str(tmp_path / "run"), "--limit", "1", *more]
        assert sample(url, prompts, tmp_path / "out.jsonl", *words) == 0

    opening = [] if more else [Message("system", "Be brief.")]
    (ids,) = read_chat_format(load_tokenizer(str(chat_model))).prompt_ids([[*opening, Message("user", QUESTIONS[0])]])
    assert script.asked[0]["prompt"] == ids


def test_a_prompt_that_the_server_refuses_is_recorded_and_the_rest_goes_on(prompts, tmp_path):
    with serving(Script("refuse", "refuse")) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", "--concurrency", "1") == 0

    assert len(read_rows(tmp_path / "out.jsonl")) == 6
    (failed,) = read_rows(tmp_path / "out.failed.jsonl")
    assert failed["error"] == "seed 3: status 400: too long (1 tries)"


def test_a_seed_that_fails_takes_no_other_answer_with_it(prompts, tmp_path, capsys):
    with serving(Script("refuse")) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", "--concurrency", "1", "--chunk", "2") == 0

    first, *others = read_rows(tmp_path / "out.jsonl")
    assert first["responses"] == ["re: Where is Rome?"] and first["sampled"]["seeds"] == [4]
    assert first["sampled"]["failed"] == [{"seed": 3, "error": "status 400: too long (1 tries)"}]
    assert len(others) == 6 and not any("failed" in row["sampled"] for row in others)
    assert not (tmp_path / "out.failed.jsonl").exists()
    assert "1 answers to other prompts failed" in capsys.readouterr().err


@pytest.mark.parametrize("answered", [0, 1, 6])
def test_a_server_that_is_down_stops_the_job_which_then_goes_on(prompts, tmp_path, capsys, answered, monkeypatch):
    """Else what it would have answered is a failure for good."""
    monkeypatch.setattr("preftune.onpolicy.remote.SILENT", 4)
    script = Script(*["answer"] * answered, then="fail")
    words = ["--concurrency", "1", "--chunk", "3", "--tries", "1"]
    with serving(script) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", *words) == 1
        assert "No server has answered " in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
        script.then = "answer"
        script.asked.clear()

        assert sample(url, prompts, tmp_path / "out.jsonl", *words) == 0

    assert len(script.asked) == 14 - answered
    assert [row["responses"] for row in read_rows(tmp_path / "out.jsonl")] == [[f"re: {q}"] * 2 for q in QUESTIONS]


def test_a_job_whose_server_goes_away_asks_only_for_the_rest_when_it_goes_on(prompts, tmp_path, capsys):
    script = Script(*["answer"] * 9, then="forbid")
    with serving(script) as url:
        assert sample(url, prompts, tmp_path / "out.jsonl", "--concurrency", "1", "--chunk", "3") == 1
        assert "wrong key" in capsys.readouterr().err
        assert not (tmp_path / "out.jsonl").exists()
        answered = 9
        script.asked.clear()
        script.then = "answer"

        assert sample(url, prompts, tmp_path / "out.jsonl", "--concurrency", "1", "--chunk", "3") == 0

    assert answered + len(script.asked) == 14
    assert [row["responses"] for row in read_rows(tmp_path / "out.jsonl")] == [[f"re: {q}"] * 2 for q in QUESTIONS]


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://here/v1"])
def test_an_address_that_is_none_is_one_line(address, prompts, tmp_path, capsys):
    assert sample(address, prompts, tmp_path / "out.jsonl") == 2
    assert "is no address of an endpoint" in capsys.readouterr().err
