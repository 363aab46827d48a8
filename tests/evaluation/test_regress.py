"""Two models side by side: the figures are those of a plain loop, and a model beside itself has not changed."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.data.chat import read_chat_format
from preftune.errors import DataError
from preftune.evaluation.regress import regress, table
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

ROWS = [
    {"prompt": "Say hello.", "chosen": "Hello there.", "rejected": "No."},
    {"prompt": "Give me JSON with your name.", "chosen": '{"name": "Ann"}', "rejected": "Ann"},
    {"prompt": "What is 2 + 2?", "chosen": "It is four.", "rejected": "Five, I think."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regress")
    tokenizer = build_byte_tokenizer(CHATML)
    for name, seed in (("before", 0), ("after", 1)):
        build_model(vocab_size=len(tokenizer), num_hidden_layers=2, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def compared(folder, other):
    names = [str(folder / name) for name in ("before", other, "rows.jsonl")]
    return regress(*names, split="train", max_tokens=12)


@pytest.fixture(scope="module")
def report(folder):
    return regress(
        str(folder / "before"), str(folder / "after"), str(folder / "rows.jsonl"), split="train", max_tokens=12
    )


def figure(report, start):
    return next(figure for figure in report.figures if figure.name.startswith(start))


def test_a_model_beside_itself_has_not_changed(folder):
    report = regress(
        str(folder / "before"), str(folder / "before"), str(folder / "rows.jsonl"), split="train", max_tokens=12
    )
    assert all(abs(figure.change) < 1e-5 for figure in report.figures)
    assert all(before == after for _, before, after in report.answers)


@pytest.mark.parametrize("name", ["before", "after"])
def test_log_probs_and_answers_are_those_of_the_models_themselves(folder, report, name):
    model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
    tokenizer = build_byte_tokenizer(CHATML)
    chat = read_chat_format(tokenizer)
    total = tokens = 0
    for row, told in zip(ROWS, report.answers, strict=True):
        text = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(row["chosen"], add_special_tokens=False) + [chat.end_id]
        with torch.no_grad():
            logps = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
            total += logps[range(len(answer)), answer].sum().item()
            greedy = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=chat.end_id)
        tokens += len(answer)
        assert told[1 + (name == "after")] == tokenizer.decode(greedy[0, len(ids) :], skip_special_tokens=True)
    assert getattr(figure(report, "log-prob of the data"), name) == pytest.approx(total / tokens, abs=1e-5)
    assert getattr(figure(report, "perplexity"), name) == pytest.approx(math.exp(-total / tokens), rel=1e-4)


def test_each_model_is_asked_with_the_system_text_of_its_own_training(folder, report, tmp_path):
    shutil.copytree(folder / "after", tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("system_prompt: You are a pirate.\n")
    rows = [{"system": "You are a pirate.", **row} for row in ROWS]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = figure(compared(folder, tmp_path / "run"), "log-prob of the data")

    said = regress(*[str(place) for place in (folder / "after", folder / "after", tmp_path / "said.jsonl")],
                   split="train", max_tokens=12)  # fmt: skip
    assert found.after == pytest.approx(figure(said, "log-prob of the data").after, abs=1e-6)
    assert found.before == figure(report, "log-prob of the data").before
    assert abs(found.after - figure(report, "log-prob of the data").after) > 1e-5


def test_another_model_is_at_a_distance_and_json_is_counted_where_it_is_asked_for(report):
    kl = figure(report, "KL(before")
    assert kl.after > 0 and kl.low < kl.after < kl.high
    assert figure(report, "JSON that can be read").before in (0.0, 1.0)
    lines = table(report).splitlines()
    assert len(lines) == len(report.figures) + 2 and lines[0] == "| | before | after | change | 95 % |"
    assert report.to_dict()["prompts"] == 3


def test_data_without_answers_is_refused(folder):
    (folder / "bare.jsonl").write_text('{"prompt": "Hello"}\n')
    with pytest.raises(DataError, match=r"bare\.jsonl"):
        regress(str(folder / "before"), str(folder / "after"), str(folder / "bare.jsonl"), split="train")
