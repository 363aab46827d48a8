"""Tiny models that can be talked to, and the places of a page over them."""

import json
import re
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preftune.web.app import Settings, build_app
from preftune.web.places import Places

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
BASE = "http://127.0.0.1:7860"


def save_model(path: Path, seed: int) -> Path:
    """A random model over single bytes: it can read anything, and what it says is noise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*MARKS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", additional_special_tokens=MARKS[1:4]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=4,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def save_pairs(path: Path, count: int = 12) -> Path:
    rows = [{"prompt": f"Say {n}.", "chosen": f"The number {n}.", "rejected": f"No number {n}!"} for n in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / name, seed) for seed, name in enumerate(("before", "after"))]


@pytest.fixture
def places(tiny, tmp_path):
    (tmp_path / "runs").mkdir()
    save_pairs(tmp_path / "data/pairs.jsonl")
    return Places(tmp_path / "runs", (tmp_path / "data",), tuple(map(str, tiny)), tmp_path / "votes.jsonl")


class Page:
    """A browser of one: it knows the token that stands in the page."""

    def __init__(self, places, **settings):
        self.client = TestClient(build_app(places, Settings(**settings)), base_url=BASE)
        self.headers = {"x-preftune-token": re.search('token" content="([^"]+)"', self.client.get("/").text)[1]}

    def get(self, path, **query):
        return self.client.get(f"/api/{path}", params=query)

    def post(self, path, body):
        return self.client.post(f"/api/{path}", json=body, headers=self.headers)

    def ask(self, *models, question="hello", **more):
        """Events of all sides."""
        sides = [model if isinstance(model, dict) else {"model": str(model)} for model in models]
        reply = self.post("ask", {"question": question, "sides": sides, "max_tokens": 12, **more})
        assert reply.status_code == 200, reply.text
        return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]


@pytest.fixture
def page(places):
    return Page(places)
