"""What published files ask of a run: an evaluation at the end, trackers, a model that is saved; and the guard rails."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune import train
from preftune.demo.corpus import corpus_texts
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.errors import RecipeError
from preftune.recipe import guards
from preftune.train.record import read_log

SIZES = ModelSettings(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
PAIRS = [{"prompt": f"What is {n} plus 1?", "chosen": f"{n} 加 1 等于 {n + 1}。", "rejected": "No."} for n in range(8)]
PUBLISHED = {  # the part of a published file that is about the run
    "bf16": True,
    "do_eval": True,
    "evaluation_strategy": "steps",
    "eval_steps": 400,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "hub_model_id": "simpo-exps",
    "push_to_hub": False,
    "save_strategy": "steps",
    "save_steps": 1000000,
    "report_to": ["wandb"],
    "attn_implementation": "flash_attention_2",
    "warmup_ratio": 0.1,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed=0, sizes=SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def values(tmp_path, model_folder):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS)
        (data / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return {
        "model_name_or_path": str(model_folder),
        "dataset": str(data),
        "max_steps": 2,
        "total_batch_size": 4,
        "output_dir": str(tmp_path / "run"),
    }


def test_a_published_run_evaluates_at_its_end_and_saves_its_model(values, tmp_path):
    summary = train(None, **values, **PUBLISHED, dataset_splits=["train", "test"])
    held_out = [record for record in read_log(tmp_path / "run/log.jsonl") if "eval_loss" in record]
    assert [record["step"] for record in held_out] == [2]
    assert summary["metrics"]["eval_loss"] == held_out[0]["eval_loss"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 0


def test_the_end_is_not_evaluated_twice(values, tmp_path):
    train(None, **values, do_eval=True, eval_strategy="steps", eval_steps=1, dataset_splits=["train", "test"])
    held_out = [record for record in read_log(tmp_path / "run/log.jsonl") if "eval_loss" in record]
    assert [record["step"] for record in held_out] == [1, 2]


def test_what_is_not_there_is_a_line_each_and_the_run_goes_on(values, caplog, monkeypatch):
    from preftune.model.usable_attention import usable_attention
    from preftune.train import trackers

    usable_attention.cache_clear()
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train(None, **values, **PUBLISHED, dataset_splits=["train", "test"])
    for beginning in ("report_to: wandb is not installed", "attn_implementation flash_attention_2: "):
        assert sum(record.message.startswith(beginning) for record in caplog.records) == 1


def test_guard_rails_are_said_of_a_model_that_is_large(values, caplog, monkeypatch):
    train(None, **values, learning_rate=1e-3)
    assert "far from the 128" not in caplog.text and "is above 2e-06" not in caplog.text
    monkeypatch.setattr(guards, "LARGE", 1000)
    train(None, **values, learning_rate=1e-3)
    assert "A step has 4 groups (in 1 process), far from the 128" in caplog.text
    assert "learning_rate 0.001 is above 2e-06" in caplog.text


def test_conversations_without_a_template_are_said(values, model_folder, tmp_path, caplog):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant", "user")]
    rows = [{**row, "prompt": turns} for row in PAIRS]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changed = {"dataset": str(tmp_path / "talk.jsonl"), "tokenizer_name_or_path": str(tmp_path / "base")}
    changed["chat_template"] = "plain"  # asked for: by itself it would be chatml
    train(None, **{**values, **changed})
    assert caplog.text.count("the tokenizer has no chat template") == 1


def test_fsdp_in_one_process_is_one_line(values):
    with pytest.raises(RecipeError, match="shards over several processes, and this is one alone"):
        train(None, **values, fsdp=True)
