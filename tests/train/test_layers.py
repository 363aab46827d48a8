"""What a run asks of decoder layers: how many are checkpointed, and who compiles them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from preftune.errors import RecipeError
from preftune.model.policy import layers_of
from preftune.recipe import Recipe
from preftune.recipe.load import load_recipe
from preftune.train import checkpointing
from preftune.train.checkpointing import settle_checkpoint_layers
from preftune.train.layers import check_compiling
from preftune.train.memory import RunMemory
from tests.small import build_model
from tests.train.test_trainer import arguments, build_trainer, distance, losses_of

CPU = torch.device("cpu")
ARGS = SimpleNamespace(device=CPU, devices=[CPU], process_index=0, world_size=1, deepspeed_plugin=None, fsdp=None)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("count", [0, 2])
def test_a_run_with_some_layers_checkpointed_ends_in_the_same_bits(tmp_path, count):
    plain = build_trainer(tmp_path / "plain", max_steps=3, save_strategy="no")
    plain.train()
    some = build_trainer(
        tmp_path / "some",
        loss={"objective": "simpo", "sft_weight": 0.3, "checkpoint_layers": count},
        gradient_checkpointing=True,
        max_steps=3,
        save_strategy="no",
    )
    some.train()
    assert [bool(layer.gradient_checkpointing) for layer in layers_of(some.model)] == [n < count for n in range(3)]
    assert losses_of(some) == losses_of(plain)
    assert distance(some.model, plain.model) == 0


def settled(monkeypatch, free: float | None, asked: str | int | None = "auto") -> int | str | None:
    recipe = Recipe("model", "data", checkpoint_layers=asked, training={"output_dir": "unused"})
    monkeypatch.setattr(checkpointing, "free_on_all", lambda devices: free)
    return settle_checkpoint_layers(recipe, ARGS, build_model()).checkpoint_layers


def test_auto_is_as_few_layers_as_the_free_memory_asks_for(monkeypatch):
    model = build_model()
    loaded = sum(weight.nbytes for weight in model.parameters()) / 2**30

    def needed(count: int) -> float:
        recipe = Recipe("model", "data", checkpoint_layers=count, training={"output_dir": "unused"})
        return (RunMemory(recipe, model.config).estimate(4096).total - loaded) / checkpointing.MARGIN

    assert needed(0) > needed(1) > needed(2)
    assert [settled(monkeypatch, 1.0001 * needed(count)) for count in range(3)] == [0, 1, 2]
    assert settled(monkeypatch, 0.0) == 3
    assert settled(monkeypatch, None) == 0
    assert settled(monkeypatch, 0.0, asked=1) == 1
    assert settled(monkeypatch, 0.0, asked=None) is None


def test_a_number_on_the_command_line_is_a_number():
    words = ["model_name_or_path=m", "dataset=d"]
    assert load_recipe(None, [*words, "checkpoint_layers=12"]).checkpoint_layers == 12
    assert load_recipe(None, [*words, "checkpoint_layers=auto"]).checkpoint_layers == "auto"
    with pytest.raises(RecipeError, match="'checkpoint_layers' must be"):
        load_recipe(None, [*words, "checkpoint_layers=some"])


def test_torch_compile_compiles_layers_and_accelerate_nothing(tmp_path, fresh_compiler):
    changes = {"max_steps": 3, "save_strategy": "no"}
    plain = build_trainer(tmp_path / "plain", **changes)
    plain.train()
    compiled = build_trainer(tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager", **changes)
    compiled.train()
    assert type(compiled.model_wrapped) is type(compiled.model)
    assert 1 < counters["stats"]["unique_graphs"] <= 10
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-5)
    assert distance(compiled.model, plain.model) <= 1e-4


def test_what_one_run_asks_of_the_compiler_is_not_asked_of_the_next(tmp_path):
    asked = arguments(tmp_path, torch_compile=True)
    assert (asked.torch_compile_backend, asked.tf32) == ("inductor", None)
    assert not [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO")]
    assert build_trainer(tmp_path).compiling is None


def test_a_launcher_may_ask_for_it(tmp_path, monkeypatch, fresh_compiler):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    trainer = build_trainer(tmp_path)
    assert (trainer.compiling.backend, trainer.compiling.mode) == ("eager", None)
    assert len(trainer.model.compiled_layers) == 3


def test_engines_quantised_weights_and_unknown_backends_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="one process or DDP: FSDP2 gathers and frees"):
        check_compiling("FSDP2", build_model())
    model = build_model()
    model.is_quantized = True
    with pytest.raises(RecipeError, match="not for quantised weights"):
        check_compiling("one process", model)
    with pytest.raises(RecipeError, match="'torch_compile_backend' must be one of no, eager"):
        arguments(tmp_path, torch_compile_backend="induktor")
