"""Freezing by name: what stops training, what is counted, what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.freeze import ParameterCounts, check_trainable, count_parameters, freeze, trainable_summary
from preftune.model.policy import to_policy
from tests.small import ARCHITECTURES, build_groups, build_model


def frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def names_with(model, *parts):
    return {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


CASES = [
    ("llama", ["embeddings"], ["embed_tokens"]),
    ("llama", ["head"], ["lm_head"]),
    ("llama", ["norm"], ["norm"]),
    ("llama", ["layers.1"], ["model.layers.1."]),
    ("llama", ["layers.0-1"], ["model.layers.0.", "model.layers.1."]),
    ("llama", ["model.layers.2.mlp"], ["model.layers.2.mlp."]),
    ("llama", ["q_proj"], ["q_proj"]),
    ("llama", ["down_proj.weight", "lm_head"], ["down_proj", "lm_head"]),
    ("qwen3", ["norm"], ["norm"]),  # those of queries and keys too
    ("gpt2", ["embeddings", "layers.0-1"], ["wte", "wpe", "transformer.h.0.", "transformer.h.1."]),
    ("gpt2", ["norm"], ["ln_"]),
    ("gpt2", ["bias"], ["bias"]),
]


@pytest.mark.parametrize(("name", "parts", "expected"), CASES, ids=str)
def test_a_name_freezes_its_part_and_nothing_else(name, parts, expected):
    model = build_model(name)
    counts = freeze(model, parts)
    assert frozen(model) == names_with(model, *expected)
    total = sum(p.numel() for p in model.parameters())
    assert counts == ParameterCounts(
        sum(p.numel() for p in model.parameters() if not p.requires_grad), total - counts.frozen
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_are_found_in_every_architecture(name):
    model = build_model(name)
    freeze(model, ["layers.0-1"])
    blocks = "transformer.h" if name == "gpt2" else "model.layers"
    assert frozen(model) == {n for n, _ in model.named_parameters() if n.startswith((f"{blocks}.0.", f"{blocks}.1."))}


def test_a_frozen_part_gets_no_gradient_and_the_rest_the_same():
    groups = build_groups(3)
    batch = pack(groups)
    whole, part = to_policy(build_model(), "packed"), to_policy(build_model(), "packed")
    freeze(part, ["embeddings", "layers.0", "head"])
    for model in (whole, part):
        model(batch=batch).means.sum().backward()
    for (name, wanted), (_, found) in zip(whole.named_parameters(), part.named_parameters(), strict=True):
        if found.requires_grad:
            assert torch.allclose(found.grad, wanted.grad, atol=1e-6), name
        else:
            assert found.grad is None


@pytest.mark.parametrize("part", ["embeddings", "head"])
def test_a_tied_head_goes_with_the_embeddings_and_that_is_said(part, caplog):
    model = build_model("llama-tied")
    with caplog.at_level(logging.WARNING):
        freeze(model, [part])
    assert frozen(model) == {"model.embed_tokens.weight"}
    assert "is tied to its embeddings, so both are frozen" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q_porj", "Did you mean 'q_proj'"),
        ("layers.2-3", "There are embeddings, head, norm, layers.0-2, and names with"),
        ("layers.2-1", "has no 'layers.2-1'"),
        ("odel.norm", "has no 'odel.norm'"),  # whole words only
        ("embedding", "Did you mean 'embeddings'"),
    ],
)
def test_an_unknown_name_is_refused_with_what_exists(name, said):
    model = build_model()
    with pytest.raises(ModelError) as refused:
        freeze(model, ["head", name])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not frozen(model)


def test_freezing_everything_is_refused():
    model = build_model()
    with pytest.raises(ModelError, match="freezes all of LlamaForCausalLM"):
        freeze(model, ["embeddings", "layers.0-2", "norm", "head"])
    assert not frozen(model)
    check_trainable(model)
    with pytest.raises(ModelError, match="there is nothing to train"):
        check_trainable(model.requires_grad_(False))


def test_the_summary_counts_numbers_and_a_tied_weight_once():
    model = torch.nn.Sequential(torch.nn.Linear(10, 100, bias=False), torch.nn.Linear(100, 10, bias=False))
    model[0].requires_grad_(False)
    assert trainable_summary(model) == "trains 1,000 of 2,000 parameters (50.0 %)"
    model = torch.nn.Sequential(torch.nn.Linear(1000, 1000, bias=False), torch.nn.Linear(20, 10, bias=False))
    model[0].requires_grad_(False)
    assert trainable_summary(model) == "trains 200 of 1,000,200 parameters (0.02 %)"
    tied, untied = build_model("llama-tied"), build_model("llama")
    assert count_parameters(untied).trainable - count_parameters(tied).trainable == untied.lm_head.weight.numel()
