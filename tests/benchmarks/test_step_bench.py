"""The step benchmark runs end to end on a tiny model, and its workload and floor are what they claim."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    """Imports a module of benchmarks/, which is a folder of scripts and not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]  # short names as `plan` and `report` must not reach other tests


def run_step(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "step.py"), *arguments],
        env={**os.environ, "PYTHONPATH": search_path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_tiny_run_writes_a_table_in_which_the_designs_agree(tmp_path):
    done = run_step(
        "--tiny", "--pairs", "2", "--repeats", "1", "--threads", "1", "--mixes", "dialogue", "--precision", "fp32",
        "--designs", "preftune,naive", "--parts", "speed", "--out", str(tmp_path),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    ours, naive = record["steps"]
    assert (ours["design"], naive["design"]) == ("preftune", "naive")
    assert ours["loss"] == pytest.approx(naive["loss"], abs=1e-5)
    assert ours["added_tokens"] == naive["added_tokens"] == 0
    assert 0 < naive["floor_wall_s"] < naive["wall_s"]
    assert "| fp32      | dialogue | preftune |" in (tmp_path / "step.md").read_text(encoding="utf-8")


def test_without_the_peers_it_says_how_to_get_them(tmp_path):
    done = run_step("--tiny", "--designs", "preftune,trl", BENCH_ENV=str(tmp_path / "none"))

    assert done.returncode == 2
    assert "benchmarks/install_peers.sh" in done.stderr


def test_memory_of_a_step_is_counted_above_the_training_state(bench, tmp_path):
    workload, protocol, worker = bench("workload"), bench("protocol"), bench("worker_preftune")
    size = workload.ModelSize(hidden=32, layers=1, heads=2, mlp=64, vocab=4096)
    bench("weights").save_model(size, tmp_path)
    pairs = workload.exact_pairs(64, 64, 2, size.vocab)

    answer = protocol.step_memory(
        worker.OwnDesign("naive", tmp_path, "fp32"), pairs, workload.exact_pairs(8, 4, 1, size.vocab), accumulating=True
    )

    logits_mib = 4 * 128 * size.vocab * 4 / 2**20  # 4 sequences of 128, float32; at least two such tensors are alive
    assert answer["above_state_mib"] == pytest.approx(answer["peak_mib"] - answer["base_mib"])
    if answer["peak_was_reset"]:
        assert answer["above_state_mib"] > 2 * logits_mib


@pytest.mark.parametrize(("name", "prompt", "response"), [("chat", 120, 300), ("dialogue", 350, 80)])
def test_mixes_have_the_stated_medians_and_keep_the_cap(bench, name, prompt, response):
    workload = bench("workload")

    pairs = workload.make_pairs(workload.MIXES[name], 2000, vocab=32_000, seed=0)

    assert statistics.median(len(pair.prompt) for pair in pairs) == pytest.approx(prompt, rel=0.1)
    assert statistics.median(len(pair.chosen) for pair in pairs) == pytest.approx(response, rel=0.1)
    assert all(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= 1024 for pair in pairs)
    assert all(
        pair.prompt[0] == workload.BOS and pair.chosen[-1] == pair.rejected[-1] == workload.EOS for pair in pairs
    )


def test_same_seed_same_pairs(bench):
    workload = bench("workload")
    chat = workload.MIXES["chat"]

    assert workload.make_pairs(chat, 3, 100, seed=5) == workload.make_pairs(chat, 3, 100, seed=5)
    assert workload.make_pairs(chat, 3, 100, seed=5) != workload.make_pairs(chat, 3, 100, seed=6)


def test_floor_counts_six_flops_per_parameter_and_needed_token(bench):
    workload, needed = bench("workload"), bench("needed")
    size = workload.ModelSize(hidden=8, layers=2, heads=2, mlp=16, vocab=100)
    pairs = workload.exact_pairs(prompt=10, response=5, count=1, vocab=100)
    one_flop_per_second = {
        matrix.name: {form: {"flops_per_wall_s": 1.0, "flops_per_cpu_s": 0.5} for form in needed.FORMS}
        for matrix in needed.matrices(size)
    }

    floor = needed.floor_seconds(size, pairs, one_flop_per_second)

    body, head = 2 * (4 * 8 * 8 + 3 * 8 * 16), 8 * 100
    assert floor.wall == 6 * (body * 20 + head * 10)  # 10 + 5 + 5 tokens, 5 + 5 of them predicted
    assert floor.cpu == 2 * floor.wall
    assert needed.needed_flops(size, pairs) == floor.wall
