"""Every kind of objective gives the same weights in one process and in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.slow.ranks import RUNS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    results = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{processes}")
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*launch, "--master_port", "29741", "tests/slow/ranks.py", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[processes] = torch.load(folder / "found.pt", weights_only=True)
    return results


@pytest.mark.parametrize("objective", RUNS)
def test_two_processes_end_where_one_ends(found, objective):
    one, two = found[1][objective], found[2][objective]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)
    gaps = [(two["weights"][name] - value).norm() / value.norm() for name, value in one["weights"].items()]
    assert max(gaps) < 1e-6
