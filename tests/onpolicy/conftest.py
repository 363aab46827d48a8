"""A small chat model in a folder, and prompts."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE

QUESTIONS = [
    "Where is Rome?",
    "2 + 2?",
    "Name a sea.",
    "Who wrote Faust?",
    "用一句话介绍自己",
    "Why is the sky blue?",
    "Hi",
]


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A random Llama that knows bytes, with a ChatML template and a BOS."""
    folder = tmp_path_factory.mktemp("chat-model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder)
    build_byte_tokenizer(CHATML, adds_bos=True).save_pretrained(folder)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path):
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS])
