"""The tokens of a micro-batch by the memory that is free."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from preftune.model.footprint import Engine
from preftune.recipe import Recipe
from preftune.recipe.load import load_recipe
from preftune.train import budget
from preftune.train.budget import choose_micro_batch_tokens, free_gib
from preftune.train.memory import RunMemory
from tests.small import build_model

CPU = torch.device("cpu")
ARGS = SimpleNamespace(device=CPU, process_index=0, world_size=1, deepspeed_plugin=None, fsdp=None)


def recipe_of(**keys: object) -> Recipe:
    return Recipe("model", "data", training={"output_dir": "unused"}, **keys)


def chosen(monkeypatch, free: float | None, **keys: object) -> int:
    monkeypatch.setattr(budget, "free_gib", lambda device: free)
    return choose_micro_batch_tokens(recipe_of(**keys), ARGS, build_model())


def test_where_memory_is_plenty_or_unknown_it_is_what_it_was(monkeypatch, caplog):
    assert chosen(monkeypatch, 16.0) == chosen(monkeypatch, None) == 4096
    assert not caplog.records


def test_it_is_halved_until_what_is_to_come_fits(monkeypatch, caplog):
    model = build_model()
    loaded = sum(weight.nbytes for weight in model.parameters()) / 2**30
    needed = RunMemory(recipe_of(), model.config).estimate(1024).total - loaded
    assert chosen(monkeypatch, 1.01 * needed / 0.9) == 1024
    assert chosen(monkeypatch, 0.99 * needed / 0.9) == 512
    assert "Micro-batches of up to 1024 tokens in place of 4096" in caplog.text


def test_memory_that_is_hardly_there_gives_the_least(monkeypatch):
    assert chosen(monkeypatch, 0.0) == 256


def test_what_the_recipe_says_stays(monkeypatch):
    assert chosen(monkeypatch, 0.0, micro_batch_tokens=9999) == 9999
    words = ["model_name_or_path=m", "dataset=d", "micro_batch_tokens=auto"]
    assert load_recipe(None, words).micro_batch_tokens is None


def system(root: Path, available: int, limit: str | None = None, used: str = "0") -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available} kB\n")
    if limit is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (root / "sys/fs/cgroup/memory.current").write_text(f"{used}\n")
    return root


GIB = 2**30


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        (None, "0", 4.0),
        ("max", "0", 4.0),
        (str(3 * GIB), str(GIB), 2.0),
        (str(64 * GIB), "0", 4.0),
        (str(GIB), str(2 * GIB), 0.0),
    ],
)
def test_free_is_what_the_machine_has_or_the_cgroup_leaves(tmp_path, limit, used, free):
    assert free_gib(CPU, system(tmp_path, 4 * 1024 * 1024, limit, used)) == free


def test_processes_of_a_machine_share_its_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_gib(CPU, system(tmp_path, 4 * 1024 * 1024)) == 1.0


def test_without_proc_nothing_is_known(tmp_path):
    assert free_gib(CPU, tmp_path) is None


def test_the_engine_is_read_off_the_arguments():
    assert budget.engine_of(ARGS) == Engine()
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}}
    plugin = SimpleNamespace(zero_stage=3, deepspeed_config=offload)
    args = SimpleNamespace(**{**vars(ARGS), "deepspeed_plugin": plugin, "world_size": 4})
    assert budget.engine_of(args) == Engine("ZeRO-3", 4, "all")
