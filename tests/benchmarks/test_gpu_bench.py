"""The GPU benchmark runs end to end on a CPU at small size, and what it counts and checks is what it claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_run_on_a_cpu_writes_every_table(tmp_path):
    words = ["--device", "cpu", "--tiny", "--mixes", "dialogue", "--precision", "fp32", "--repeats", "1"]

    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert all(record[key] for key in ("machine", "date", "commit", "command"))
    assert [(sample["design"], sample["failed"]) for sample in record["samples"]] == [
        ("packed", ""), ("padded", ""), ("naive", ""),
    ]  # fmt: skip
    losses = [sample["losses"][0] for sample in record["samples"]]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    for sample in record["samples"]:
        assert {phase["name"] for phase in sample["memory"]["phases"]} == {"forward", "backward", "update"}
        assert sample["profile"]["families"]["matrix products"] > 0
    assert not [found for found in record["verdicts"] if found["right"] is False]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "WRONG" not in page
    assert "| torch varlen_attn" in page and "needs a CUDA device" in page


def test_flex_on_a_cpu_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--designs", "flex"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.strip() == "gpu.py: the design 'flex' needs a CUDA device. Leave it out of --designs."


def test_the_8b_shape_has_as_many_parameters_as_llama_3(bench):
    assert bench("shapes").SHAPES["8b"].parameters == 8_030_261_248


def test_useful_operations_count_a_prompt_once_and_the_head_on_scored_rows(bench):
    shapes, workload = bench("shapes"), bench("workload")
    shape = shapes.Shape(hidden=8, layers=2, heads=2, kv_heads=1, mlp=16, vocab=100)
    pair = workload.Pair(prompt=[1, 5, 6], chosen=[7, 2], rejected=[2])

    # prompt sees 1 + 2 + 3, chosen 4 + 5, rejected 4
    assert shapes.seen_tokens(pair) == 19
    body, head = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16), 8 * 100
    assert shapes.useful_flops(shape, [pair]) == 6 * (body * 6 + head * 3) + 12 * 2 * 8 * 19


@pytest.mark.parametrize(
    ("device", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12), ("cpu", None)]
)
def test_peaks_are_found_by_the_name_of_the_device(bench, device, peak):
    assert bench("shapes").peak_of(device) == peak


def test_a_response_sees_the_prompt_and_itself_through_the_window(bench):
    from preftune.types import Tree

    seen = bench("causality").visible((Tree(0, 2, (1, 2)),), window=2)

    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_backends_that_run_on_a_cpu_are_right(bench):
    verdicts = bench("causality").check_backends(torch.device("cpu"))

    ran = {(found.backend, found.window) for found in verdicts if found.right is not None}
    assert ran == {
        ("varlen plan, written out", None),
        ("varlen plan, written out", 7),
        ("dense blocks", None),
        ("dense blocks", 7),
        ("CPU matrix products", None),
    }
    assert all(found.right for found in verdicts if found.right is not None)
    assert all(found.reason for found in verdicts if found.right is None)


def test_a_kernel_that_aligns_to_the_top_left_is_caught(bench):
    causality = bench("causality")

    def top_left(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        outs = []
        for number in range(len(cu_q) - 1):
            rows, columns = slice(cu_q[number], cu_q[number + 1]), slice(cu_k[number], cu_k[number + 1])
            parts = (x.transpose(0, 1)[None] for x in (q[rows], k[columns], v[columns]))
            outs.append(F.scaled_dot_product_attention(*parts, is_causal=True, scale=scale)[0].transpose(0, 1))
        return torch.cat(outs)

    found = causality._verdict("x", causality._varlen(top_left), "", torch.float32, None, torch.device("cpu"))

    assert found.right is False
    assert found.output_gap > 0.1


def test_a_backend_that_fails_is_a_reason_and_no_verdict(bench):
    causality = bench("causality")

    def broken(*arguments, **keywords):
        raise RuntimeError("no kernel image is available\nfor this device")

    found = causality._verdict("x", causality._varlen(broken), "", torch.float32, None, torch.device("cpu"))

    assert (found.right, found.reason) == (None, "failed: RuntimeError: no kernel image is available")


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("void flash::flash_fwd_kernel<...>", "attention"),
        ("nvjet_hsh_192x192_64x3_2x1_v_bz_NNT", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("aten::silu", "elementwise and other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(bench, kernel, family):
    assert bench("device_kernels").family_of(kernel) == family


def test_the_reason_of_a_failure_is_the_line_that_names_it(bench):
    gpu = bench("gpu")
    said = ["worker 'trl-cpo' failed", "Traceback (most recent call last):", "  loss = step()"]
    text = "\n".join([*said, "torch.OutOfMemoryError: CUDA out of memory. Tried", "a line of some log"])

    assert gpu.reason_of(gpu.WorkerError(text)) == "torch.OutOfMemoryError: CUDA out of memory. Tried"


def test_a_peer_that_is_not_installed_is_a_line_of_the_table(bench, monkeypatch, tmp_path):
    gpu = bench("gpu")
    monkeypatch.setattr(bench("step"), "PEERS", tmp_path)
    plan = gpu.build_plan(gpu.parse_arguments(["--device", "cpu", "--tiny", "--designs", "liger"]))
    results = gpu.GpuResults("cpu", None, 1e9, [])

    (sample,) = results.samples = gpu.measure("liger", plan, results, None)

    assert (sample.mix, sample.seconds) == ("chat", [])
    assert "| liger-kernel is not installed: install_peers.sh |" in bench("gpu_page").speed_table(plan, results)
