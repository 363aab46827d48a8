"""One process, DDP, FSDP2 and DeepSpeed's ZeRO end at the same weights, and each really is what it is called."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.slow.engines import RUNS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # float32
TWO = ["ddp", "fsdp2", "zero2", "zero3"]


def start(processes: int, *words: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    launcher = launcher or ("torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29743")
    return subprocess.run(
        [sys.executable, "-m", *launcher, "tests/slow/engines.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
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
        results = torch.load(folder / "found.pt", weights_only=True)
        for name, result in results.items():
            result["folder"] = folder / name
        return results

    return run


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def worst_gap(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items())


@pytest.mark.parametrize("name", [name for name in RUNS if name != "bf16"])
@pytest.mark.parametrize("engine", TWO)
def test_an_engine_over_two_processes_ends_where_one_process_ends(found, engine, name):
    one, two = found("ddp", 1)[name], found(engine, 2)[name]
    assert two["losses"] == pytest.approx(one["losses"], rel=TOLERANCE, abs=5 * TOLERANCE)
    assert worst_gap(weights_of(two["folder"]), weights_of(one["folder"])) < TOLERANCE


@pytest.mark.parametrize("engine", TWO)
def test_log_probs_stay_float32_when_layers_compute_in_bf16(found, engine):
    """With accelerate's own policy of FSDP2, which rounds the model's output, losses are off by some 5e-2."""
    assert found(engine, 2)["bf16"]["losses"] == pytest.approx(found("ddp", 1)["bf16"]["losses"], rel=1e-2)


@pytest.mark.parametrize("name", ["simpo", "dpo"])
@pytest.mark.parametrize("engine", TWO)
def test_a_resumed_run_is_the_same_run_to_the_last_bit(found, engine, name):
    folder = found(engine, 2)[name]["folder"]
    went_on, whole = weights_of(folder.with_name(f"{name}-resumed")), weights_of(folder)
    assert all(torch.equal(went_on[key], value) for key, value in whole.items())


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_sharded_weights_are_halved_over_two_ranks(found, engine):
    whole = found("ddp", 2)["simpo"]["held"][0]
    for held in found(engine, 2)["simpo"]["held"]:
        assert 0.48 * whole < held < 0.52 * whole


@pytest.mark.parametrize("engine", TWO)
def test_the_final_model_is_loaded_as_any_other(found, engine):
    folder = found(engine, 2)["dpo"]["folder"]
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_fsdp_that_would_run_as_ddp_is_stopped(tmp_path):
    """accelerate does not shard on CPU, and says nothing of it."""
    done = start(2, tmp_path, "fsdp2-as-users-start-it", "simpo")
    assert done.returncode != 0
    assert "FSDP2 was asked for and the model is held by DDP: this would be another run." in done.stderr


def test_accelerate_that_starts_one_process_of_two_is_stopped(tmp_path):
    words = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    words += ("--main_process_port", "29745")
    done = start(2, tmp_path, "ddp", "simpo", launcher=words)
    assert done.returncode != 0
    assert "accelerate launch was asked for several processes and has started one" in done.stderr
