"""Compiled decoder layers against plain ones: log-probs and every gradient, traced and as generated code, on CPU."""

from __future__ import annotations

import pytest
import torch

from preftune.data.pack import pack
from preftune.data.plan import Cut
from preftune.model.compiled import compile_layers
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import to_policy
from tests.model.test_compiled import BATCHES, LOGPS, answers, compare, fresh_compiler, graphs  # noqa: F401
from tests.small import build_model
from tests.train.test_trainer import build_trainer, distance, losses_of

pytestmark = pytest.mark.slow
ROADS = [("llama", "packed"), ("llama", "padded"), ("mistral-window", "packed"), ("gemma2", "packed")]


@pytest.mark.parametrize(("name", "road"), [*ROADS, ("qwen3", "packed"), ("gpt2", "packed")])
def test_traced_layers_give_the_same_log_probs_and_gradients(name, road):
    model = to_policy(build_model(name), road)
    wanted = answers(model, BATCHES[:3])
    assert compile_layers(model, "aot_eager") == 3
    compare(answers(model, BATCHES[:3]), wanted)
    assert graphs() > 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant):
    model = to_policy(build_model("llama"), "packed")
    wanted = answers(model, BATCHES)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    compile_layers(model, "aot_eager")
    compare(answers(model, BATCHES), wanted)
    assert 1 < graphs() <= 10


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_lora_and_its_reference(checkpointing):
    model = add_adapter(build_model("llama"), LoraSettings(r=4, target_modules="ALL"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)
    to_policy(model, "packed")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wanted = answers(model, BATCHES[:4], fused=False)
    with torch.no_grad(), model.disable_adapter():
        base = [model(batch=pack(groups)).means for groups in BATCHES[:4]]
    compile_layers(model, "aot_eager")
    compare(answers(model, BATCHES[:4], fused=False), wanted)
    with torch.no_grad(), model.disable_adapter():
        for groups, means in zip(BATCHES[:4], base, strict=True):
            assert (model(batch=pack(groups)).means - means).abs().max() <= LOGPS
    before = graphs()
    compare(answers(model, BATCHES[:4], fused=False), wanted)
    assert before == graphs() <= 16


def test_under_bfloat16_autocast():
    """To the rounding of bfloat16, as traced operations are cast one by one."""
    model = to_policy(build_model("llama"), "packed")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = answers(model, BATCHES[:3])
        compile_layers(model, "aot_eager")
        compare(answers(model, BATCHES[:3]), wanted, logps=2e-2, relative=5e-2)


def test_generated_code_with_checkpointing():
    model = to_policy(build_model("llama"), "packed")
    wanted = answers(model, BATCHES)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compile_layers(model)
    compare(answers(model, BATCHES), wanted)
    first = graphs()
    compare(answers(model, BATCHES), wanted)
    assert graphs() == first


def test_a_run_with_torch_compile_ends_where_it_ends_without(tmp_path):
    plain = build_trainer(tmp_path / "plain", cut=Cut(max_tokens=120))
    plain.train()
    compiled = build_trainer(tmp_path / "compiled", cut=Cut(max_tokens=120), torch_compile=True)
    compiled.train()
    assert graphs() > 1
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-4)
    assert distance(compiled.model, plain.model) <= 1e-3
