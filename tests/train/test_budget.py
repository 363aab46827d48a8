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
from preftune.train.memory import RunMemory, largest_budget
from tests.small import build_group, build_model

CPU = torch.device("cpu")
GIB = 2**30
ARGS = SimpleNamespace(device=CPU, devices=[CPU], process_index=0, world_size=1, deepspeed_plugin=None, fsdp=None)


def recipe_of(**keys: object) -> Recipe:
    return Recipe("model", "data", training={"output_dir": "unused"}, **keys)


def chosen(monkeypatch, free: float | None, groups=None, args=ARGS, **keys: object) -> int:
    monkeypatch.setattr(budget, "free_gib", lambda device: free)
    return choose_micro_batch_tokens(recipe_of(**keys), args, build_model(), groups=groups)


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


def to_come(tokens: int, several: bool) -> float:
    model = build_model()
    loaded = sum(weight.nbytes for weight in model.parameters()) / GIB
    return RunMemory(recipe_of(), model.config).estimate(tokens, several=several).total - loaded


def test_a_step_that_fits_into_one_micro_batch_is_not_cut(monkeypatch, caplog):
    """A step of one row of 31 tokens: it never takes what 4096 tokens and the gradients of an earlier batch would."""
    groups = [build_group(16, 8, 9, row=row) for row in range(5)]
    assert chosen(monkeypatch, 1.1 * to_come(31, several=False) / 0.9, groups, total_batch_size=1) == 4096
    assert not caplog.records


def test_where_cutting_makes_it_larger_and_nothing_fits_it_stays_as_it_is(monkeypatch):
    """FSDP2 keeps whole gradients where a step has several micro-batches."""
    engine, model = Engine("FSDP2", 8), build_model(vocab_size=20_000)
    run = RunMemory(recipe_of(), model.config)
    assert run.estimate(256, engine, several=True).total > run.estimate(403, engine, several=False).total
    monkeypatch.setattr(budget, "engine_of", lambda args: engine)
    monkeypatch.setattr(budget, "free_gib", lambda device: 0.0)
    args = SimpleNamespace(**{**vars(ARGS), "world_size": 8})
    groups = [build_group(16, 8, 9, row=row) for row in range(8 * 13)]  # 13 rows of a step on each: 403 tokens
    assert choose_micro_batch_tokens(recipe_of(total_batch_size=104), args, model, groups=groups) == 4096


def test_a_row_is_not_cut_so_a_smaller_budget_than_the_longest_helps_nothing(monkeypatch):
    groups = [build_group(900, 100, 26)] * 4  # 1024 tokens
    assert chosen(monkeypatch, 0.0, groups, total_batch_size=4) == 1024


def test_a_model_whose_memory_cannot_be_told_takes_the_usual(monkeypatch):
    def fail(self, *_, **__):
        raise RuntimeError("a library's own error")

    monkeypatch.setattr(RunMemory, "estimate", fail)
    assert chosen(monkeypatch, 0.001) == 4096


def test_the_largest_cut_may_be_the_only_one_that_fits():
    """One micro-batch a step, so that no gradients wait for the next."""
    assert largest_budget(lambda tokens: 5.0 if tokens == 1000 else 9.0, 6.0, 200, 1000) == 1000
    assert largest_budget(lambda tokens: 9.0, 6.0, 200, 1000) is None
    assert largest_budget(lambda tokens: tokens / 100, 6.0, 200, 1000) == 584


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


@pytest.mark.parametrize(
    ("folder", "limit", "used", "word"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_the_cache_of_files_that_were_read_is_free_in_a_cgroup(tmp_path, folder, limit, used, word):
    """A container of 3 GiB that has just read 2 GiB of weights, and holds half a GiB itself."""
    root = system(tmp_path, 4 * 1024 * 1024, None)
    place = root / "sys/fs/cgroup" / folder
    place.mkdir(parents=True)
    (place / limit).write_text(f"{3 * GIB}\n")
    (place / used).write_text(f"{5 * GIB // 2}\n")
    (place / "memory.stat").write_text(f"anon {GIB // 2}\nfile 7\n{word} {2 * GIB}\nactive_file 0\n")
    assert free_gib(CPU, root) == 2.5


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
