"""Small models as runs leave them: whole, as an adapter on one, and as a reward model."""

from __future__ import annotations

import pytest
import torch

from preftune.model.load import load_model, load_tokenizer
from preftune.model.lora import LoraSettings, add_adapter, save_plain_lora
from preftune.model.new_tokens import embed_new_tokens, modules_of_tokens
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

BYTES = 260  # tokens of the byte tokenizer
OF_BYTES = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}


def save_small(folder, name="llama", tokenizer=True, **changes):
    """A small model that embeds the byte tokenizer's tokens, as a folder."""
    dtype = changes.pop("dtype", torch.float32)
    build_model(name, dtype=dtype, **{"vocab_size": BYTES, **OF_BYTES, **changes}).save_pretrained(folder)
    if tokenizer:
        build_byte_tokenizer(CHATML).save_pretrained(folder)
    return folder


def save_adapter(base, folder, new_tokens=(), seed=1, **settings):
    """A LoRA adapter with weights that matter, in a run folder beside its tokenizer."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(str(base)), load_tokenizer(str(base))
    whole = list(settings.pop("modules_to_save", ()))
    if new_tokens:
        tokenizer.add_tokens(list(new_tokens), special_tokens=True)
        embed_new_tokens(model, tokenizer.convert_tokens_to_ids(list(new_tokens)))
        whole += modules_of_tokens(model)
    adapted = add_adapter(model, LoraSettings(r=4, modules_to_save=whole or None, **settings))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    save_plain_lora(adapted, folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def adapter(small, tmp_path_factory):
    return save_adapter(small, tmp_path_factory.mktemp("models") / "adapter")


@pytest.fixture(scope="session")
def reward(tmp_path_factory):
    """A reward model as a run leaves it: sequence classification, the head once more in a file."""
    from preftune.model.heads import load_reward_model, save_value_head

    folder = tmp_path_factory.mktemp("models")
    base = save_small(folder / "base")
    tokenizer = load_tokenizer(str(base))
    model = load_reward_model(str(base), tokenizer=tokenizer)
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    save_value_head(model, folder / "reward")
    return folder / "reward"
