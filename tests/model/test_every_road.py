"""Every road of a packed batch, under every way to train, against the slow way: log-probs and all gradients.

The roads of a GPU run here by what stands in for their kernels: the variable-length call written out, FlexAttention's
eager form. Float32 is held to 1e-5 nats a token and 1e-4 of a gradient; bfloat16 autocast to 2e-2 nats and 6e-2, its
own rounding.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module

from preftune.data.pack import pack
from preftune.model import attention
from preftune.model.checkpointing import checkpoint_first
from preftune.model.flex import attend_flex
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import to_policy
from preftune.model.varlen import attend_varlen, varlen_attn_reference
from tests.model.test_equality import loss_of
from tests.small import build_group, build_groups, build_model, gradients, lengths_of, slow_logps, worst_gradient_gap

GROUPS = [*build_groups(3), build_group(9, 12, 18, opening=5), build_group(1, 6, 1)]
ROADS = ["products", "dense blocks", "varlen", "flex", "padded"]
WAYS = ["full", "checkpointing", "some layers", "lora", "lora and checkpointing", "bf16"]


def through_varlen(query, key, value, plan, scale, window, softcap, sinks):
    return attend_varlen(query, key, value, plan.varlen, scale, window, kernel=varlen_attn_reference)


@pytest.fixture
def road(request, monkeypatch):
    """All layers attend on this road."""
    monkeypatch.setattr(attention, "DENSE_MEAN_TOKENS", 0 if request.param == "products" else 10**9)
    if request.param == "varlen":
        monkeypatch.setattr(attention, "attend_dense", through_varlen)
    if request.param == "flex":
        monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)  # its front door turns CPUs away
        monkeypatch.setattr(attention, "attend_dense", attend_flex)
    return request.param


def adapted(name, way):
    model = build_model(name)
    if "lora" in way:
        model = add_adapter(model, LoraSettings(r=3, target_modules="ALL"))
        torch.manual_seed(4)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("road", ROADS, indirect=True)
def test_every_road_gives_the_slow_ways_gradient_in_every_way_to_train(road, way, name):
    model, lengths = adapted(name, way), lengths_of(GROUPS)
    means = slow_logps(model, GROUPS) / lengths
    loss_of(means).backward()
    wanted = gradients(model)
    model.zero_grad()
    to_policy(model, "padded" if road == "padded" else "packed")
    if "checkpointing" in way:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way == "some layers":
        checkpoint_first(model, 2)
    low = way == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss, sums = model(batch=pack(GROUPS), group_loss=lambda sums, some: loss_of(sums / lengths[some]))
    loss.backward()
    assert (sums / lengths - means).abs().max() <= (2e-2 if low else 1e-5)
    found = gradients(model)
    if low:
        gap = torch.stack([(found[key] - wanted[key]).norm() for key in wanted]).norm()
        assert gap <= 6e-2 * torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    else:
        assert worst_gradient_gap(found, wanted) <= 1e-4
