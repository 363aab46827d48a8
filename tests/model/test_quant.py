"""Adapters on quantised weights (QLoRA), on CPU: against a dense model with the dequantised weights, and real steps."""

from __future__ import annotations

import sys

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit

from preftune.data.pack import pack
from preftune.errors import MissingExtraError, ModelError
from preftune.model.freeze import check_trainable, count_parameters, trainable_summary
from preftune.model.load import load_model
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import to_policy
from tests.small import build_groups, build_model, gradients, lengths_of, slow_logps, worst_gradient_gap

GROUPS = build_groups(4)
LENGTHS = lengths_of(GROUPS)
BATCH = pack(GROUPS)
SETTINGS = LoraSettings(r=4, alpha=8)
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense")
    build_model(**WIDE).save_pretrained(path)
    return str(path)


def adapted(model, settings=SETTINGS):
    """With an adapter whose weights are all random, and always the same."""
    torch.manual_seed(1)
    model = add_adapter(model, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def loss_of(means):
    return F.softplus((means * torch.tensor([1.0, 2.0])).sum(1)).sum()


def dequantised(model):
    """A dense model with the weights that the 4-bit one stands for."""
    dense = build_model(**WIDE)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, module in dense.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                weight = modules[name].weight
                module.weight.copy_(dequantize_4bit(weight.data, weight.quant_state))
    return dense


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["ALL", "lm_head"]}, {"dora": True}], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_train_as_the_dense_model_that_they_stand_for(folder, kind, settings):
    settings = LoraSettings(r=4, alpha=8, **settings)
    model = load_model(folder, load_in_4bit=True, quant_type=kind)
    dense = adapted(dequantised(model), settings)
    wanted = slow_logps(dense, GROUPS) / LENGTHS
    loss_of(wanted).backward()
    model = to_policy(adapted(model, settings), "packed")  # with its preflight, which takes no gradients
    model.train()
    loss, sums = model(batch=BATCH, group_loss=lambda sums, some: loss_of(sums / LENGTHS[some]))
    loss.backward()
    assert (sums / LENGTHS - wanted).abs().max() <= 1e-5
    assert worst_gradient_gap(gradients(model), gradients(dense)) <= 1e-4


QUANTISED = {"nf4": {"load_in_4bit": True}, "8 bits": {"load_in_8bit": True}}
NEAR = {"nf4": 0.2, "8 bits": 0.05}  # nats per token, of a random model with mean log-probs from -4.7 to -6


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_log_probs_are_near_the_dense_ones(folder, kind, dtype):
    dense = to_policy(load_model(folder), "packed")(batch=BATCH).means
    model = load_model(folder, torch_dtype=dtype, **QUANTISED[kind])
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == getattr(torch, dtype)
    with torch.no_grad():
        means = to_policy(model, "packed")(batch=BATCH).means
    assert means.isfinite().all()
    assert (means - dense).abs().max() < NEAR[kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_training_an_adapter_on_quantised_weights(folder, kind, dtype):
    model = add_adapter(load_model(folder, torch_dtype=dtype, **QUANTISED[kind]), SETTINGS)
    check_trainable(model)
    to_policy(model, "packed")
    model.train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3)
    losses = []
    for _ in range(6):
        loss, _ = model(batch=BATCH, group_loss=lambda sums, some: -(sums / LENGTHS[some]).sum())
        loss.backward()
        losses.append(loss.item())
        assert gradients(model).keys() == trained.keys()
        optimizer.step()
        optimizer.zero_grad()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


def test_an_adapter_of_quantised_weights_comes_back_on_quantised_and_dense_ones(folder, tmp_path):
    model = adapted(load_model(folder, load_in_4bit=True))
    model.save_pretrained(tmp_path)
    wanted = to_policy(model, "packed")(batch=BATCH).means
    again = to_policy(load_model(str(tmp_path), load_in_4bit=True), "packed")
    assert torch.allclose(again(batch=BATCH).means, wanted, atol=1e-5)
    dense = to_policy(load_model(str(tmp_path)), "packed")
    assert (dense(batch=BATCH).means - wanted).abs().max() < NEAR["nf4"]
    with again.disable_adapter(), torch.no_grad():
        base = to_policy(load_model(folder, load_in_4bit=True), "packed")
        assert torch.allclose(again(batch=BATCH).means, base(batch=BATCH).means, atol=1e-6)


def test_quantised_weights_are_counted_by_what_they_stand_for(folder):
    dense = build_model(**WIDE)
    total = sum(p.numel() for p in dense.parameters())
    for kind in QUANTISED.values():
        assert count_parameters(load_model(folder, **kind)).frozen == total
    model = add_adapter(load_model(folder, load_in_4bit=True), LoraSettings(r=4, target_modules=["q_proj"]))
    assert trainable_summary(model) == f"trains 1,536 of {total + 1536:,} parameters ({153600 / (total + 1536):.1f} %)"


def test_full_training_and_a_split_of_quantised_weights_are_refused(folder):
    model = load_model(folder, load_in_4bit=True)
    with pytest.raises(ModelError, match="quantised weights cannot be trained"):
        check_trainable(model)
    for init in ("pissa", "pissa_niter_4", "olora"):
        with pytest.raises(ModelError, match=f"lora_init: {init} splits the base weights"):
            add_adapter(model, LoraSettings(init=init))


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_where_bitsandbytes_is_missing_or_does_not_run_one_line_says_so(folder, key, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no kernel for this device\nand more")

    for kind in ("Linear4bit", "Linear8bitLt"):
        monkeypatch.setattr(getattr(bitsandbytes.nn, kind), "forward", fails)
    with pytest.raises(ModelError) as refused:
        load_model(folder, **{key: True})
    assert f"{key} needs bitsandbytes (extra 'quant'), which does not run on this machine's" in str(refused.value)
    assert "no kernel for this device" in str(refused.value)
    assert "\n" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'preftune\[quant\]'"):
        load_model(folder, **{key: True})
    load_model(folder)
