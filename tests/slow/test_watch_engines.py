"""The collapse watch where engines hold the weights: the same figures and alarms, and nothing of the run is changed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENGINES = ["fsdp2", "zero2", "zero3"]


def start(processes: int, *words: object) -> subprocess.CompletedProcess:
    launcher = ("torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29759")
    return subprocess.run(
        [sys.executable, "-m", *launcher, "tests/slow/watch_engines.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    @functools.cache
    def run(engine: str, processes: int) -> dict:
        if engine.startswith("zero") and find_spec("deepspeed") is None:
            pytest.skip("needs the extra 'deepspeed'")
        folder = tmp_path_factory.mktemp(f"{engine}{processes}")
        done = start(processes, folder, engine)
        assert done.returncode == 0, done.stderr[-3000:]
        return {path.parent.name: json.loads(path.read_text()) | {"folder": path.parent} for path in figures_in(folder)}

    return run


def figures_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/figures.json"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", ["simpo", "lora"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_with_weights_in_pieces_see_what_one_process_sees(found, engine, name):
    one, two = found("ddp", 1)[name]["looks"], found(engine, 2)[name]["looks"]
    assert [look["step"] for look in two] == [look["step"] for look in one] == [0, 2, 4, 6]
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-4)
    assert abs(one[-1]["watch/chosen"] - one[0]["watch/chosen"]) > 1e-3  # there was something to see


@pytest.mark.parametrize("engine", ENGINES)
def test_a_watched_run_ends_in_the_same_bits(found, engine):
    watched, alone = (weights_of(found(engine, 2)[name]["folder"]) for name in ("simpo", "simpo-alone"))
    assert all(torch.equal(watched[key], value) for key, value in alone.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_collapses_is_stopped(found, engine):
    ill = found(engine, 2)["ruinous"]
    assert ill["said"].startswith("The model collapses at step 2; there is no earlier checkpoint. Cause: learning_rate")
    assert "chosen" in ill["watch"]["signs"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rollback_ends_with_the_last_healthy_model(found, engine):
    back, one = found(engine, 2)["rollback"], found("ddp", 1)["rollback"]
    assert back["watch"]["rolled_back_to"] == one["watch"]["rolled_back_to"] == 2
    wanted = weights_of(one["folder"])
    for name, value in weights_of(back["folder"]).items():
        assert torch.allclose(value, wanted[name], atol=1e-5), name


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_look_that_fails_in_one_process_ends_the_run(tmp_path, engine):
    """The other waits within a layer, where it can be told nothing."""
    if engine == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("needs the extra 'deepspeed'")
    done = start(2, tmp_path, engine, "failing")
    assert done.returncode != 0
    assert "Collapse watch: process 1 could not look at step 2 (MemoryError: no more)" in done.stderr
    assert not figures_in(tmp_path)
