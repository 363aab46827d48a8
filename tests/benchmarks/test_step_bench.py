"""The step benchmark runs end to end on a tiny model, and its workload and floor are what they claim."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def run_step(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "step.py"), *arguments],
        env={**os.environ, "PYTHONPATH": search_path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def liger_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `liger_kernel` whose loss is written down from its docstring: it lives in the environment of the peers."""

    class SimPOLoss(torch.nn.Module):
        def __init__(self, ignore_index, beta, gamma, compute_nll_loss, compiled):
            super().__init__()
            self.ignored, self.beta, self.gamma = ignore_index, beta, gamma
            assert not compute_nll_loss and not compiled

        def forward(self, weight, states, labels):
            scored = labels != self.ignored
            logps = (states @ weight.t()).float().log_softmax(-1)
            logps = logps.gather(2, labels.where(scored, 0)[:, :, None])[:, :, 0] * scored
            chosen, rejected = (logps.sum(1) / scored.sum(1)).chunk(2)
            return -torch.nn.functional.logsigmoid(self.beta * (chosen - rejected) - self.gamma).mean(), ()

    module = ModuleType("liger_kernel.chunked_loss")
    module.LigerFusedLinearSimPOLoss = SimPOLoss
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", module)


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


@pytest.mark.parametrize(("design", "package"), [("trl", "trl"), ("liger", "liger-kernel")])
def test_without_the_peers_it_says_how_to_get_them(tmp_path, design, package):
    done = run_step("--tiny", "--designs", f"preftune,{design}", BENCH_ENV=str(tmp_path / "none"))

    assert done.returncode == 2
    assert f"needs {package} in the peers' environment" in done.stderr
    assert "benchmarks/install_peers.sh" in done.stderr


def test_all_designs_give_the_same_loss_and_gradients(bench, tmp_path, liger_stand_in):
    workload, ours, liger = bench("workload"), bench("worker_preftune"), bench("worker_liger")
    size = workload.ModelSize(hidden=32, layers=2, heads=2, mlp=64, vocab=128)
    bench("weights").save_model(size, tmp_path)
    pairs = workload.make_pairs(workload.MIXES["dialogue"].shrunk(16), 3, size.vocab, seed=0)
    designs = [ours.OwnDesign(name, tmp_path, "fp32") for name in ours.STEPS] + [liger.LigerSimPO(tmp_path, "fp32")]

    losses = [design.backward(design.prepare(pairs)) for design in designs]

    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)
    expected, *others = ([p.grad for p in design.model.parameters()] for design in designs)
    for gradients in others:
        for found, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)
    assert len({tuple(design.sequence_lengths(pairs)) for design in designs}) == 1


def test_padded_pairs_score_the_responses_and_nothing_else(bench):
    pair = bench("workload").Pair(prompt=[1, 9], chosen=[5, 6, 2], rejected=[7, 2])

    input_ids, attention_mask, labels = bench("padding").pad_pairs([pair])

    assert input_ids.tolist() == [[1, 9, 5, 6, 2], [1, 9, 7, 2, 0]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert labels.tolist() == [[-100, -100, 5, 6, 2], [-100, -100, 7, 2, -100]]


def test_goals_stand_beside_what_was_found(bench):
    plan, goals = bench("plan"), bench("goals")

    def step(design, repetition, wall_s):
        sizes = {"pairs": 8, "useful_tokens": 9, "cpu_s": 1.0, "floor_wall_s": 0.6, "floor_cpu_s": 1.0, "loss": 0.0}
        rest = {"sequence_lengths": [], "added_tokens": 0, "peak_rss_mib": 0.0}
        return plan.StepSample(design, "chat", "bf16", repetition, wall_s=wall_s, **sizes, **rest)

    def memory(design, above_state_mib):
        return plan.MemorySample(design, "exact", "bf16", 128_000, 2, False, 0.0, 0.0, above_state_mib, True)

    steps = [step("preftune", 1, 1.0), step("trl", 1, 4.0), step("preftune", 2, 2.0), step("trl", 2, 6.0)]
    results = plan.Results(steps, [], [memory("preftune", 100.0), memory("trl", 400.0)], {}, {})

    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in goals.goals_table(results).splitlines()]

    assert rows[2:] == [
        ["times as fast as trl, chat, bf16", ">= 3.50", "3.50", "4.00, 3.00", "yes"],
        ["fraction of the floor, chat, bf16", ">= 0.60", "0.45", "0.60, 0.30", "no"],
        ["memory of trl's, vocabulary 128000, bf16, new gradients", "<= 0.33", "0.25", "0.25", "yes"],
    ]


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
