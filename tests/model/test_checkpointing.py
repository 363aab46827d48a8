"""Gradient checkpointing of some layers: the same gradient, and what is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.checkpointing import checkpoint_first
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import layers_of, to_policy
from tests.model.test_equality import loss_of
from tests.small import build_groups, build_model, gradients

BATCH = pack(build_groups(4))


def gradients_of(model):
    """Gradients, and the bytes of the tensors that autograd kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model(batch=BATCH).means)
    loss.backward()
    return gradients(model), sum(kept.values())


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_any_number_of_layers_gives_the_same_gradient(name, reentrant, adapter):
    model = build_model(name)
    if adapter:
        model = add_adapter(model, LoraSettings(r=2, target_modules="ALL"))
    to_policy(model, "packed")
    wanted, _ = gradients_of(model)
    base = model.get_base_model() if adapter else model
    for count in range(4):
        checkpoint_first(model, count, None if reentrant is None else {"use_reentrant": reentrant})
        assert [bool(layer.gradient_checkpointing) for layer in layers_of(base)] == [n < count for n in range(3)]
        found, _ = gradients_of(model)
        assert found.keys() == wanted.keys()
        assert all(found[key].equal(wanted[key]) for key in wanted), count


def test_each_layer_more_keeps_less():
    model = to_policy(build_model("llama"), "packed")
    kept = []
    for count in range(4):
        checkpoint_first(model, count)
        kept.append(gradients_of(model)[1])
    steps = [more - less for more, less in pairwise(kept)]
    assert all(step > 0.2 * kept[0] for step in steps), kept


def test_what_cannot_be_done_is_said():
    with pytest.raises(ModelError, match="'checkpoint_layers' 4 is more than the 3 decoder layers"):
        checkpoint_first(build_model("llama"), 4)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, is_decoder=True)
    with pytest.raises(ModelError, match="has no list of 2 decoder layers"):
        checkpoint_first(BertLMHeadModel(config), 1)
