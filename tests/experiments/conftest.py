"""A small random chat model, and a recipe over made-up pairs that trains it in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import transformers
import yaml

from preftune.experiments import arms
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE

SAYS = "import sys; print(sys.argv[2], file=sys.stderr if int(sys.argv[1]) else sys.stdout); sys.exit(int(sys.argv[1]))"


@dataclass
class Verbs:
    """In place of the verbs of arms: each says what `answer` gives for its words, and ends with that code."""

    answer: Callable[[tuple[str, ...]], tuple[int, str]] = lambda words: (0, "{}")
    started: list[tuple[str, ...]] = field(default_factory=list)

    def open(self, words, printed, said, environment, lock):
        self.started.append(words)
        code, text = self.answer(words)
        return subprocess.Popen([sys.executable, "-S", "-c", SAYS, str(code), text], stdout=printed, stderr=said)


@pytest.fixture
def verbs(monkeypatch):
    """Processes that train nothing."""
    stand_in = Verbs()
    monkeypatch.setattr(arms, "_open", stand_in.open)
    return stand_in


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat-model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_byte_tokenizer(CHATML, adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, chat_model):
    """`r.yaml`: the chosen answer of each pair is a word, the rejected one a number."""
    rows = [{"prompt": f"{n}?", "chosen": "yes" * (1 + n % 3), "rejected": str(n) * (1 + n % 2)} for n in range(40)]
    for name, part in (("train", rows[:32]), ("eval", rows[32:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    settings = {
        "model_name_or_path": str(chat_model),
        "dataset": str(tmp_path / "train.jsonl"),
        "eval_dataset": str(tmp_path / "eval.jsonl"),
        "max_length": 64,
        "total_batch_size": 8,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def real_recipe(tmp_path):
    """A recipe over real pairs and a small trained model, whose answers a watch can tell from babble."""
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("a trained model and real pairs: set PREFTUNE_TEST_DATA to the folder that holds them")
    settings = {
        "model_name_or_path": f"{folder}/models/stories260K-llama",
        "dataset": f"{folder}/preferences/emoji/dpo_emoji_english_gpt.train.jsonl#64",
        "eval_dataset": f"{folder}/preferences/emoji/dpo_emoji_english_gpt.eval.jsonl",
        "chat_template": "plain",
        "total_batch_size": 16,
        "max_length": 256,
        "max_prompt_length": 128,
        "max_steps": 4,
        "watch_steps": 2,
        "save_strategy": "no",
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
