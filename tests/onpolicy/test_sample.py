"""`preftune sample` from a prompt file to rows that the data layer and the reward models read."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from preftune.cli.main import main
from preftune.data import load_preferences, load_rows, read_chat_format
from preftune.generation import Sampling
from preftune.model.load import load_model, load_tokenizer
from preftune.onpolicy.answers import EngineAnswerer, Replies, Reply
from preftune.onpolicy.local import weights_mark
from preftune.onpolicy.prompts import load_prompts
from preftune.onpolicy.sample import sample_prompts
from preftune.serve.score import score_file
from preftune.types import Message
from tests.onpolicy.conftest import QUESTIONS, read_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]


def sample(model, prompts, output, *more):
    words = ["sample", str(model), str(prompts), "--output", str(output), "--max-tokens", "12", *map(str, more)]
    return main(words)


class Scripted:
    """Answers as a test says."""

    def __init__(self, *found):
        self.found = list(found)

    def settings(self):
        return {}

    def answer(self, prompts, seeds, told):
        return [self.found.pop(0) for _ in prompts]


def test_every_prompt_gets_an_answer_a_seed(chat_model, prompts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"

    assert sample(chat_model, prompts, output, "--json") == 0

    rows = read_rows(output)
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": question}] for question in QUESTIONS]
    assert all(set(row) == {"prompt_id", "prompt", "responses", "sampled"} for row in rows)
    for row in rows:
        details = row["sampled"]
        assert sorted(details["seeds"] + details["empty"]) == [13, 21, 42, 79, 100]
        assert len(row["responses"]) == len(details["finish"]) == len(details["tokens"]) == len(details["seeds"])
        assert len(set(row["responses"])) > 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["prompts"] == 7
    assert summary["answers"] == sum(len(row["responses"]) for row in rows)
    assert summary["tokens"] == sum(sum(row["sampled"]["tokens"]) for row in rows)


def test_the_rows_are_read_as_ranked_data_once_they_have_scores(chat_model, prompts, tmp_path):
    sample(chat_model, prompts, tmp_path / "out.jsonl", "--temperature", "1")
    reward = tmp_path / "reward"
    config = transformers.LlamaConfig.from_pretrained(chat_model, num_labels=1, pad_token_id=256)
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(reward)
    load_tokenizer(str(chat_model)).save_pretrained(reward)

    summary = score_file(str(reward), tmp_path / "out.jsonl", output=tmp_path / "scored.jsonl")

    assert summary["rows"] == 7
    pairs = load_preferences(tmp_path / "scored.jsonl", layout="paired")
    assert len(pairs) == 7
    assert all(pair.scores[0] >= pair.scores[1] for pair in pairs)
    assert [pair.prompt[0].content for pair in pairs] == QUESTIONS


def test_greedy_answers_are_those_of_generate_after_the_chat_template(chat_model, prompts, tmp_path):
    sample(chat_model, prompts, tmp_path / "out.jsonl", "--temperature", 0, "--seeds", 1)

    model, tokenizer = load_model(str(chat_model)).eval(), load_tokenizer(str(chat_model))
    chat = read_chat_format(tokenizer)
    for row, question in zip(read_rows(tmp_path / "out.jsonl"), QUESTIONS, strict=True):
        ids = chat.prompt_ids([[Message("user", question)]])[0]
        assert ids.count(256) == 1
        assert row["sampled"]["prompt_tokens"] == len(ids)
        given = torch.tensor([ids])
        out = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False, eos_token_id=[257, 259]
        )
        assert row["responses"] == [tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)]


def test_prompts_of_pairs_of_conversations_and_with_tools_are_taken_once(tmp_path):
    pairs = write_rows(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "Hi", "chosen": "a", "rejected": "b"},
            {"prompt": "Hi", "chosen": "c", "rejected": "d"},
            {"prompt": "Bye", "chosen": "a", "rejected": "b"},
        ],
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    turns = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]
    talks = write_rows(tmp_path / "talks.jsonl", [{"messages": turns, "tools": [tool]}])

    found = [prompt.to_row() for prompt in load_prompts([pairs, talks], system="Be kind.")]

    assert [row["prompt"] for row in found] == [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Bye"}],
        turns,
    ]
    assert [row.get("tools") for row in found] == [None, None, [tool]]
    assert len({row["prompt_id"] for row in found}) == 3


def test_prompts_that_cannot_be_answered_are_recorded_and_the_rest_goes_on(chat_model, tmp_path, capsys):
    rows = [{"prompt": "Hi"}, {"prompt": "x" * 400}, {"prompt": "Bye"}]
    output = tmp_path / "out.jsonl"

    assert sample(chat_model, write_rows(tmp_path / "p.jsonl", rows), output) == 0

    assert [row["prompt"][0]["content"] for row in read_rows(output)] == ["Hi", "Bye"]
    (failed,) = read_rows(tmp_path / "out.failed.jsonl")
    assert "the model reads 256" in failed["error"]
    assert "1 prompts failed" in capsys.readouterr().out


def test_empty_answers_are_left_out_with_their_seeds(tmp_path):
    prompts = load_prompts([write_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "Bye"}])])
    some = Replies((Reply("", "stop", 1), Reply("Yes.", "stop", 3)), 4)
    none = Replies((Reply(" ", "stop", 2), Reply("", "stop", 1)), 4)

    summary = sample_prompts(prompts, Scripted(some, none), tmp_path / "out.jsonl", seeds=(7, 8))

    (row,) = read_rows(tmp_path / "out.jsonl")
    assert row["responses"] == ["Yes."]
    assert (row["sampled"]["seeds"], row["sampled"]["empty"]) == ([8], [7])
    assert summary["failed"] == 1
    assert read_rows(tmp_path / "out.failed.jsonl")[0]["error"] == "all 2 answers are empty."


def test_the_space_that_an_answer_begins_with_is_kept():
    from tests.data.conftest import find_data_folder

    folder = str(find_data_folder() / "models" / "stories260K-llama")
    answerer = EngineAnswerer(load_model(folder).eval(), load_tokenizer(folder), Sampling(), slots=1)
    prompt = answerer.chat.encode(["Once upon"])[0]
    whole = answerer.chat.encode(["Once upon a time"])[0]
    assert whole[: len(prompt)] == prompt
    assert answerer._text(prompt, whole[len(prompt) :]) == " a time"


def test_processes_share_the_prompts_and_the_last_writes_the_same_file(chat_model, prompts, tmp_path, monkeypatch):
    sample(chat_model, prompts, tmp_path / "one.jsonl", "--chunk", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert not (tmp_path / "two.jsonl").exists()
        monkeypatch.setenv("RANK", rank)
        assert sample(chat_model, prompts, tmp_path / "two.jsonl", "--chunk", 2) == 0

    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_job_goes_on_only_with_the_same_settings_and_prompts(chat_model, prompts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    sample(chat_model, prompts, output)
    before = output.read_bytes()

    assert sample(chat_model, prompts, output) == 0  # nothing is left to do
    assert output.read_bytes() == before
    capsys.readouterr()
    for changes, said in (
        (["--temperature", "0.5"], "temperature was 0.8 and is 0.5"),
        (["--limit", "3"], "prompts was 7 and is 3"),
        (["--system", "Be kind."], "prompts_hash"),
        (["--seeds", "1"], "seeds was [13, 21, 42, 79, 100] and is [1]"),
    ):
        assert sample(chat_model, prompts, output, *changes) == 2
        assert said in capsys.readouterr().err


def test_weights_that_were_trained_on_are_those_of_another_model(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = bytearray(5 * 2**20)
    marks = set()
    for place in (0, len(weights) // 2, -1):  # the first tensors of the file, those in the middle, the last
        weights[place] += 1
        file.write_bytes(weights)
        marks.add(weights_mark(str(tmp_path)))
        assert weights_mark(str(tmp_path)) in marks
    assert len(marks) == 3
    assert weights_mark("owner/name") is None


def test_wrong_words_are_one_line(chat_model, prompts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    for words, said in (
        (["--top-p", "0"], "top_p"),
        (["--max-tokens", "0"], "max_new_tokens"),
        (["--columns", "prompt="], "columns"),
    ):
        assert sample(chat_model, prompts, output, *words) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert said in error[-1]
    assert not output.exists()


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_file(chat_model, tmp_path):
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Question number {number}?"} for number in range(48)])
    words = ["sample", str(chat_model), str(prompts), "--max-tokens", "40", "--chunk", "4", "--slots", "8"]

    def start(name):
        command = [sys.executable, "-m", "preftune", *words, "--output", str(tmp_path / name)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    whole = start("whole.jsonl")
    assert whole.wait() == 0, whole.stderr.read()
    journal = tmp_path / "killed.jsonl.job" / "rank-0-of-1.jsonl"
    kills = 0
    for _ in range(2):
        process = start("killed.jsonl")
        size = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < size + 2000):
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    last = start("killed.jsonl")
    said = last.communicate()[1].decode()
    assert last.returncode == 0, said

    assert kills == 2
    assert "are answered already; going on" in said
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(load_rows(tmp_path / "killed.jsonl")) == 48


def test_progress_says_tokens_a_second_and_the_time_left(caplog, monkeypatch):
    from preftune.onpolicy import sample as module

    monkeypatch.setattr(module, "SPOKEN_SECONDS", 0.0)
    progress = module._Progress(prompts=10, left=8)
    progress.started -= 60
    with caplog.at_level(logging.INFO, "preftune"):
        progress.told(2, 600)

    assert caplog.messages[-1].startswith("4 of 10 prompts, 10 tokens/s, about 0:03:00 left")
