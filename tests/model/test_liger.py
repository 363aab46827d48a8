"""Liger's layer kernels: which are asked for, that they are held against the model's own, and what is refused.

The kernels themselves run on GPUs; a stand-in of the package has its two names, and layers written out in torch.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import MethodType, ModuleType

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from preftune.errors import MissingExtraError, ModelError, RecipeError
from preftune.model import liger
from preftune.model.lora import LoraSettings, add_adapter
from preftune.recipe import load_recipe
from preftune.train.needs import check_packages
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_groups, build_model

NORM_ERROR = {"relative": 0.0}
asked: list[dict[str, bool]] = []


def norm(self, states):
    wide = states.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (scaled * (1 + NORM_ERROR["relative"])).to(states.dtype)


def gated(self, states):
    return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


def apply_to_instance(model, **kernels):
    """As liger_kernel 0.8: kernels that the function of a model type knows, all but cross_entropy on by default."""
    asked.append(kernels)
    on = {"rms_norm": True, "swiglu": True, "fused_linear_cross_entropy": True, "cross_entropy": False, **kernels}
    if on["fused_linear_cross_entropy"]:
        model.forward = MethodType(lambda self, *args, **kwargs: pytest.fail("Liger's loss runs"), model)
    for layer in model.model.layers:
        if on["swiglu"]:
            layer.mlp.forward = MethodType(gated, layer.mlp)
        if on["rms_norm"]:
            layer.input_layernorm.forward = MethodType(norm, layer.input_layernorm)


@pytest.fixture
def package(monkeypatch):
    outer, inner, patches = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    outer.__spec__ = ModuleSpec("liger_kernel", None)
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN, patches._apply_liger_kernel_to_instance = {"llama": None}, apply_to_instance
    for module in (outer, inner, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(NORM_ERROR, "relative", 0.0)
    asked.clear()


@pytest.mark.parametrize("adapter", [False, True])
def test_layer_kernels_are_put_in_and_losses_left_out(package, adapter):
    model = build_model("llama")
    if adapter:
        model = add_adapter(model, LoraSettings(r=2, target_modules="ALL"))
    liger.use_layer_kernels(model, {"rope": False, "fused_linear_cross_entropy": True})
    assert asked == [{"rope": False, "fused_linear_cross_entropy": False, "cross_entropy": False}]
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 211)
    base = model.get_base_model() if adapter else model
    assert base.model.layers[0].mlp.forward.__func__ is gated


def test_kernels_that_change_the_states_are_refused(package, monkeypatch):
    monkeypatch.setitem(NORM_ERROR, "relative", 0.05)
    with pytest.raises(ModelError, match=r"kernels change the states of LlamaForCausalLM by 0\.0"):
        liger.use_layer_kernels(build_model("llama"))


def test_a_model_without_kernels_is_refused(package):
    with pytest.raises(ModelError, match="Liger has no kernels for models of type gpt2"):
        liger.use_layer_kernels(build_model("gpt2"))


def test_it_needs_a_gpu_and_the_extra(monkeypatch):
    with pytest.raises(RecipeError, match="'use_liger_kernel' true needs a CUDA device"):
        liger.check_liger(on_gpu=False)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'preftune\[liger\]'"):
        liger.check_liger(on_gpu=True)


def test_a_recipe_and_plain_arguments_are_refused_without_a_gpu(tmp_path):
    recipe = load_recipe(None, {"model_name_or_path": "m", "dataset": "d", "use_liger_kernel": True, "use_cpu": True})
    assert recipe.training["use_liger_kernel"] is True
    with pytest.raises(RecipeError, match="needs a CUDA device"):
        check_packages(recipe)
    args = TrainingArguments(output_dir=str(tmp_path), use_liger_kernel=True, use_cpu=True, report_to="none")
    with pytest.raises(RecipeError, match="needs a CUDA device"):
        PreferenceTrainer(build_model("llama"), args, train_dataset=build_groups(4))


def test_the_trainer_puts_them_in_and_leaves_the_losses_out(package, tmp_path, monkeypatch):
    monkeypatch.setattr("preftune.train.layers.check_liger", lambda on_gpu: None)
    args = TrainingArguments(
        output_dir=str(tmp_path), use_liger_kernel=True, use_cpu=True, report_to="none", max_steps=1, save_strategy="no"
    )
    trainer = PreferenceTrainer(build_model("llama"), args, train_dataset=build_groups(8))
    trainer.train()
    assert asked == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert trainer.model.road == "packed"
