"""Loading: precisions, attention that cannot run here, folders, and no code of strangers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.errors import ModelError
from preftune.model import usable_attention as module
from preftune.model.load import load_model
from preftune.model.policy import to_policy
from preftune.model.usable_attention import usable_attention
from preftune.recipe import load_recipe
from tests.small import build_model


@pytest.fixture(autouse=True)
def forget():
    usable_attention.cache_clear()


@pytest.fixture
def folder(tmp_path):
    def save(name="llama", dtype=torch.bfloat16):
        build_model(name, dtype=dtype).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize(
    ("torch_dtype", "found"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
        ("fp32", torch.float32),
        ("float32", torch.float32),
    ],
)
def test_the_precision_of_the_weights_is_the_one_asked_for(folder, torch_dtype, found):
    recipe = load_recipe(None, {"model_name_or_path": folder(), "dataset": "d", "torch_dtype": torch_dtype})
    assert load_model(recipe.model_name_or_path, torch_dtype=recipe.torch_dtype).dtype == found


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, "sdpa"),
        ("sdpa", "sdpa"),
        ("eager", "eager"),
        ("flash_attention_2", "sdpa"),
        ("flash_attention_3", "sdpa"),
        ("kernels-community/flash-attn", "sdpa"),
    ],
)
def test_attention_that_cannot_run_here_is_replaced(folder, asked, used, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module.utils, "is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr(module.utils, "is_flash_attn_3_available", lambda: False)
    assert load_model(folder(), attn_implementation=asked).config._attn_implementation == used


def test_it_is_said_once_with_what_is_used_instead(folder, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place = folder()
    load_model(place, attn_implementation="flash_attention_2")
    load_model(place, attn_implementation="flash_attention_2")
    (line,) = [record.message for record in caplog.records if "flash_attention_2" in record.message]
    assert "there is no CUDA device" in line and "sdpa" in line


def test_a_missing_package_on_a_gpu_is_named(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.utils, "is_flash_attn_2_available", lambda: False)
    assert usable_attention("flash_attention_2") is None
    assert "flash-attn is not installed" in caplog.text


def test_flash_attention_that_is_there_is_used(monkeypatch):
    monkeypatch.setattr(module.utils, "is_flash_attn_2_available", lambda: True)
    assert usable_attention("flash_attention_2") == "flash_attention_2"


def test_an_attention_that_does_not_exist_is_one_line(folder):
    with pytest.raises(ModelError, match="nonsense") as caught:
        load_model(folder(), attn_implementation="nonsense")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("road", ["packed", "padded"])
def test_gemmas_eager_attention_is_that_of_the_padded_road(folder, road):
    policy = to_policy(load_model(folder("gemma2", torch.float32), attn_implementation="eager"), road)
    assert policy.usual_attention == "eager"
    assert (policy.config._attn_implementation == "eager") == (road == "padded")


def test_code_that_comes_with_a_model_is_not_run_unless_asked(tmp_path):
    code = "raise SystemExit('ran')\n"
    (tmp_path / "modeling_x.py").write_text(code)
    classes = {"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": classes}))
    assert load_recipe(None, {"model_name_or_path": "m", "dataset": "d"}).trust_remote_code is False
    with pytest.raises(ModelError):
        load_model(str(tmp_path))


def test_the_revision_reaches_the_hub(monkeypatch):
    asked = {}

    def from_pretrained(name, **settings):
        asked.update(settings, name=name)
        raise OSError("offline")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr("preftune.model.load.find_adapter_config_file", lambda *a, **k: None)
    with pytest.raises(ModelError, match="asked for on the hub"):
        load_model("owner/name", revision="abc123")
    assert (asked["name"], asked["revision"], asked["trust_remote_code"]) == ("owner/name", "abc123", False)


def test_a_folder_needs_no_network(folder, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    place = folder()
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_model(place).num_parameters() > 0
