"""lm-evaluation-harness on a small model: tasks of one's own, offline, with the prompts of training."""

from __future__ import annotations

import json
import shutil

import datasets
import huggingface_hub.constants
import pytest
import torch
import transformers
import yaml

from preftune.cli.main import main
from preftune.data.chat import read_chat_format
from preftune.evaluation.files import read_rows
from preftune.types import Message
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE as SMALL

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

SHAPE = {**SMALL, "vocab_size": 260, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "choices": ["one", "four"]} for n in range(5)]


@pytest.fixture(scope="module", autouse=True)
def no_hub():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and two tasks over one file: text that is written, and a choice by log-probs."""
    folder = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder / "model")
    build_byte_tokenizer(CHATML).save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}", "metadata": {"version": 1.0},
    }  # fmt: skip
    written = common | {
        "task": "sums", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Q:"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    chosen = common | {"task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
                       "doc_to_target": 1, "metric_list": [{"metric": "acc"}]}  # fmt: skip
    (folder / "tasks").mkdir()
    for task in (written, chosen):
        (folder / "tasks" / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


def run(folder, *words):
    return main(["eval", "harness", str(folder / "model"), "--include", str(folder / "tasks"), *map(str, words)])


def greedy(folder, ids, count):
    """The model's own next tokens, one by one, up to the end of a turn."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ends = {257, read_chat_format(transformers.AutoTokenizer.from_pretrained(folder / "model")).end_id}
    found = []
    with torch.no_grad():
        while len(found) < count:
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
            if found[-1] in ends:
                break
    return found


def test_local_tasks_run_offline_with_the_prompts_of_training(folder, tmp_path, capsys):
    assert run(folder, "--tasks", "sums,choice", "--samples", tmp_path / "s.jsonl", "--json") == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index('{\n  "model"') :])
    assert found["prompt_form"] == "chat template" and found["lm_eval"] == lm_eval.__version__
    figures = {(one["task"], one["metric"].split(",")[0]): one for one in found["tasks"]}
    assert set(figures) == {("sums", "exact_match"), ("choice", "acc")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    chat = read_chat_format(tokenizer)
    rows = read_rows(tmp_path / "s.jsonl")
    sums = [row for row in rows if row["task"] == "sums"]
    for row, source in zip(sums, ROWS, strict=True):
        message = Message("user", source["question"])
        assert row["prompt"] == chat.prompt_text(chat.turns([message]))
        ids = greedy(folder, chat.prompt_ids([[message]])[0], 9)
        assert row["answer"] == tokenizer.decode(ids, skip_special_tokens=True).split("Q:")[0]
    assert figures["sums", "exact_match"]["mean_tokens"] == pytest.approx(sum(row["tokens"] for row in sums) / 5)
    assert figures["sums", "exact_match"]["samples"] == 5
    assert figures["choice", "acc"]["mean_tokens"] is None and 0 <= figures["choice", "acc"]["value"] <= 1
    assert figures["choice", "acc"]["value"] == pytest.approx(chosen(folder, chat))


def chosen(folder, chat):
    """The share of questions whose second choice is more likely, by plain forward passes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    right = 0
    for row in ROWS:
        prompt = chat.prompt_ids([[Message("user", row["question"])]])[0]
        sums = []
        for choice in row["choices"]:
            ids = chat.encode([choice])[0]
            with torch.no_grad():
                logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logps[len(prompt) - 1 + at, token]) for at, token in enumerate(ids)))
        right += sums[1] > sums[0]
    return right / len(ROWS)


def test_few_shot_examples_are_turns_and_plain_text_has_no_template(folder, tmp_path, capsys):
    assert run(folder, "--tasks", "sums", "--plain", "--limit", 2, "--samples", tmp_path / "p.jsonl", "--json") == 0
    said = capsys.readouterr().out
    assert json.loads(said[said.index('{\n  "model"') :])["prompt_form"] == "plain text"
    assert [row["prompt"] for row in read_rows(tmp_path / "p.jsonl")] == [row["question"] for row in ROWS[:2]]


def test_special_tokens_in_choices_and_begun_answers_are_text(folder):
    from preftune.evaluation.harness import TrainedModel, _load

    chat = read_chat_format(transformers.AutoTokenizer.from_pretrained(folder / "model"))
    model = TrainedModel(_load(str(folder / "model"), chat), chat, batch_size=1)
    spelt = "</s><|im_end|>"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": spelt}]
    ids, more = model._encode_pair(model.apply_chat_template(turns, add_generation_prompt=False), spelt)
    asked = chat.prompt_ids([[Message("user", "q")]])[0]
    letters = [chat.encode([letter])[0][0] for letter in spelt]
    assert (ids, more) == (asked + letters, letters)


def test_an_unknown_task_is_one_line(folder, capsys):
    assert run(folder, "--tasks", "sumz") == 2
    said = capsys.readouterr().err.strip()
    assert "'sumz' is no task of lm-evaluation-harness" in said and "\n" not in said


def test_the_system_text_of_training_is_in_front(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text("system_prompt: Be brief.\n")
    words = ["--tasks", "sums", "--limit", "1", "--samples", str(tmp_path / "rows.jsonl")]
    words = ["eval", "harness", str(tmp_path / "model"), "--include", str(folder / "tasks"), *words]
    assert main(words) == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is")
    assert main([*words, "--plain"]) == 0
    assert read_rows(tmp_path / "rows.jsonl")[0]["prompt"] == ROWS[0]["question"]
