from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.attention import NAME
from preftune.model.load import disable_dropout, load_model, load_tokenizer
from preftune.model.policy import attention, to_policy
from tests.small import SHAPE, build_group, build_groups, build_model, lengths_of, slow_logps


def test_a_policy_is_still_the_model_it_was(tmp_path):
    model = build_model("llama")
    names = list(model.state_dict())
    ids = torch.tensor([[1, 5, 9, 14]])
    before = model.eval()(input_ids=ids).logits
    to_policy(model)
    assert model.road == "packed"
    assert list(model.state_dict()) == names
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-6)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["LlamaForCausalLM"]
    assert NAME not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_policy_generates_with_padding_as_before(name, cache):
    model = build_model(name).eval()
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[0, 0, 1, 5], [1, 9, 14, 7]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def answer():
        settings = {} if cache is None else {"cache_implementation": cache}
        return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **settings)

    before = answer()
    to_policy(model)
    assert torch.equal(answer(), before)
    assert model._supports_logits_to_keep()
    assert model.config._attn_implementation == NAME


def test_a_policy_twice_is_a_policy():
    model = to_policy(to_policy(build_model("llama")))
    assert type(model).__name__ == "LlamaForCausalLM"
    groups = build_groups(3)
    assert torch.allclose(model(batch=pack(groups)).sums, slow_logps(build_model("llama"), groups), atol=1e-4)


STATE_SPACE = {
    "MambaConfig": {},
    "FalconH1Config": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}


@pytest.mark.parametrize("kind", STATE_SPACE)
def test_a_model_that_is_not_plain_attention_takes_the_padded_road(kind, caplog):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SHAPE, "num_hidden_layers": 2, **STATE_SPACE[kind]})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    groups = [build_group(9, 5, 7), build_group(4, 3, 8)]
    wanted = slow_logps(model, groups)
    with caplog.at_level(logging.WARNING):
        to_policy(model)
    assert model.road == "padded"
    assert "takes the padded road" in caplog.text
    assert torch.allclose(model(batch=pack(groups)).means, wanted / lengths_of(groups), atol=1e-4)


def test_asking_for_the_packed_road_where_it_cannot_go_is_refused():
    config = transformers.MambaConfig(**{**SHAPE, "num_hidden_layers": 2})
    with pytest.raises(ModelError, match="road: packed cannot serve MambaForCausalLM"):
        to_policy(transformers.AutoModelForCausalLM.from_config(config), "packed")


def test_an_unknown_road_is_refused():
    with pytest.raises(ModelError, match="'road' must be one of auto, packed, padded, found 'fast'"):
        to_policy(build_model("llama"), "fast")


@pytest.mark.parametrize(("name", "changes"), [("llama", {"attention_dropout": 0.1}), ("gpt2", {"attn_pdrop": 0.1})])
def test_attention_dropout_takes_the_padded_road_until_it_is_off(name, changes):
    model = build_model(name, **changes)
    if name == "gpt2":
        for block in model.transformer.h:
            block.attn.attn_dropout.p = 0.1
    assert to_policy(model.eval()).road == "padded"
    with pytest.raises(ModelError, match="attention dropout is on"):
        to_policy(model, "packed")
    assert disable_dropout(model) >= 3
    assert to_policy(model).road == "packed"


def test_dropout_that_is_a_number_is_switched_off_too():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    config = transformers.OPTConfig(vocab_size=99, dropout=0.2, max_position_embeddings=64, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.tensor([[5, 9, 14, 7]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert disable_dropout(model) > 0
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_head_of_more_than_one_layer_is_refused():
    torch.manual_seed(0)
    shape = {**SHAPE, "is_decoder": True}
    model = transformers.AutoModelForCausalLM.from_config(transformers.BertConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    with pytest.raises(ModelError, match="more to its states than one linear head"):
        to_policy(model)


def test_the_former_attention_comes_back_after_an_error():
    model = to_policy(build_model("llama"))
    with pytest.raises(ZeroDivisionError), attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
        raise ZeroDivisionError
    assert model.config._attn_implementation == NAME


def test_loading_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    cases = {
        str(tmp_path / "absent"): "does not exist",
        str(tmp_path / "file"): "is a file",
        str(tmp_path / "empty"): "has no config.json",
        str(broken): "No model can be loaded",
    }
    for name, expected in cases.items():
        with pytest.raises(ModelError) as refused:
            load_model(name)
        assert expected in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match="'torch_dtype' must be one of auto, float32"):
        load_model(str(broken), torch_dtype="int8")
    with pytest.raises(ModelError, match="does not exist"):
        load_tokenizer(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("asked", "got"), [(None, torch.float32), ("auto", torch.bfloat16), ("float32", torch.float32)]
)
def test_weights_are_loaded_in_the_precision_asked_for(tmp_path, asked, got):
    build_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), torch_dtype=asked).dtype == got
