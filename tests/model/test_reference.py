"""The reference is the model as it was: full weights, part of them, an adapter fresh or trained."""

from __future__ import annotations

import copy

import pytest
import torch

from preftune.data.pack import pack
from preftune.model.policy import to_policy
from preftune.model.reference import AdapterOff, FrozenModel, Snapshot, own_reference
from tests.small import build_groups, build_model

BATCH = pack(build_groups(4))


def logps(model):
    with torch.no_grad():
        return model(batch=BATCH).sums


def shake(model):
    """As training would: every trainable weight moves."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def adapted(base, trained=False, **settings):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base, config)
    if trained:
        shake(model)
    return model


MODELS = {
    "full": (lambda: build_model("llama-tied"), Snapshot),
    "fresh adapter": (lambda: adapted(build_model()), AdapterOff),
    "fresh adapter and whole modules": (lambda: adapted(build_model(), modules_to_save=["lm_head"]), AdapterOff),
    "trained adapter": (lambda: adapted(build_model(), trained=True), Snapshot),
    "pissa": (lambda: adapted(build_model(), init_lora_weights="pissa"), Snapshot),
    "dora": (lambda: adapted(build_model(), use_dora=True), AdapterOff),
    "fresh adapter and rows of tokens": (lambda: adapted(build_model(), trainable_token_indices=[5, 9]), AdapterOff),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_own_reference_stays_where_the_model_started(name):
    build, kind = MODELS[name]
    model = to_policy(build(), "packed")
    start = logps(model)
    reference = own_reference(model)
    assert isinstance(reference, kind)
    shake(model)
    now = logps(model)
    assert (now - start).abs().max() > 0.1
    assert torch.allclose(reference(BATCH).sums, start, atol=1e-4)
    assert torch.equal(logps(model), now)  # and the policy is back


def test_autocast_does_not_mix_the_reference_with_the_policy():
    model = to_policy(build_model(), "packed")
    with torch.autocast("cpu", torch.bfloat16):
        start = logps(model)
    reference = own_reference(model)
    shake(model)
    with torch.autocast("cpu", torch.bfloat16):
        now = logps(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reference(BATCH).sums, start)
        assert torch.equal(logps(model), now)
        assert torch.equal(reference(BATCH).sums, start)


def test_a_snapshot_copies_what_is_trained_and_nothing_else():
    model = to_policy(build_model(), "packed")
    model.model.layers[:2].requires_grad_(False)
    reference = Snapshot(model)
    assert sum(t.numel() for t in reference.kept.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert reference.describe() == "a frozen copy of what is trained"


def test_a_frozen_model_is_another_model_without_gradients_or_dropout():
    other = to_policy(build_model(seed=3), "packed")
    wanted = logps(other)
    reference = FrozenModel(other)
    assert torch.equal(reference(BATCH).sums, wanted)
    assert not reference(BATCH).sums.requires_grad
    assert not any(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_state_of_a_reference_is_that_of_the_start(name):
    model = to_policy(MODELS[name][0](), "packed")
    start = copy.deepcopy(model.state_dict())
    reference = own_reference(model)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    shake(model)
    found = reference.state_dict()
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)
    if isinstance(reference, Snapshot):
        assert found.keys() == start.keys() and all(torch.equal(found[name], start[name]) for name in start)


def test_a_reference_is_scored_without_dropout():
    model = to_policy(build_model("gpt2"), "padded")
    reference = own_reference(model)
    wanted = reference(BATCH).sums
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert torch.equal(reference(BATCH).sums, wanted)
    assert model.training
