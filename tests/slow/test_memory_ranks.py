"""Out of memory in one of two processes: both do the step again, and the run is the one with the smaller budget."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.slow.memory_ranks import LIMIT, RUNS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29751"]
        + ["tests/slow/memory_ranks.py", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_both_end_where_a_run_with_the_smaller_budget_ends(ended, name):
    folder, _ = ended
    first, second = (torch.load(folder / f"found-{rank}.pt", weights_only=True)[name] for rank in (0, 1))
    assert first["short"]["tokens"] == second["short"]["tokens"] <= LIMIT
    assert first["short"]["losses"] == first["small"]["losses"]
    for found in (first, second):
        for weight, value in first["small"]["weights"].items():
            assert torch.equal(found["short"]["weights"][weight], value), weight


def test_it_is_said_once_and_with_the_process(ended):
    _, said = ended
    lines = [line for line in said.splitlines() if "it is done again with" in line]
    assert len(lines) == len(RUNS) + 2  # and twice before the long row is alone
    assert "Out of memory in step 1" in lines[0] and "(process 1: OutOfMemoryError: Tried to allocate" in lines[0]


def test_a_row_that_does_not_fit_alone_is_named_by_both(ended):
    folder, _ = ended
    for rank in (0, 1):
        said = (folder / f"alone-{rank}.txt").read_text(encoding="utf-8")
        assert "row 99 alone has" in said and "gradient_checkpointing" in said
