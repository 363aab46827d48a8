"""A run that one process has begun is gone on with by two, and the other way round, as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.slow.other_world import RUNS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(processes that began, processes that went on; 0: whole) to what came out."""
    folders, results = {}, {}
    for begun, processes in ((0, 1), (0, 2), (2, 1), (1, 2)):
        folder = tmp_path_factory.mktemp(f"world{begun}{processes}")
        words = [str(folder), *([str(folders[0, begun])] if begun else [])]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*launch, "--master_port", "29747", "tests/slow/other_world.py", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        if begun:
            assert f"Made by {begun} processes and gone on with by {processes}: same batch, same order." in done.stderr
        folders[begun, processes], results[begun, processes] = (
            folder,
            torch.load(folder / "found.pt", weights_only=True),
        )
    return results


@pytest.mark.parametrize("objective", RUNS)
@pytest.mark.parametrize("way", [(2, 1), (1, 2)], ids=["two-to-one", "one-to-two"])
def test_another_number_of_processes_goes_on_with_the_same_run(found, objective, way):
    whole, went_on = found[0, 1][objective], found[way][objective]
    assert went_on["losses"] == pytest.approx(whole["losses"], rel=1e-6)  # the log too, with its open window
    gaps = [(went_on["weights"][name] - value).norm() / value.norm() for name, value in whole["weights"].items()]
    assert max(gaps) < 1e-6
