"""The margins of two processes: every pair once a visit, the same as in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune import train
from tests.train.test_margins import visits
from tests.train.test_run import model_folder, work  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
HERE = str(Path(__file__).parent.parent.parent)


def run(settings, *words):
    said = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "preftune", "train", *said, "watch=false", "logging_steps=3", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": HERE}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_write_what_one_writes(work):  # noqa: F811
    train(None, **{**work, "output_dir": "one", "watch": False, "logging_steps": 3})
    two = run(work, "output_dir=two", "--nproc", "2")
    assert two.returncode == 0, two.stderr[-3000:]
    alone = {(step, key): (margin, tokens) for step, key, margin, tokens in visits(Path("one"))}
    together = visits(Path("two"))
    assert len(alone) == len(together) == 4 * 8
    assert [step for step, *_ in together] == sorted(step for step, *_ in together)
    for step, key, margin, tokens in together:
        wanted, lengths = alone[step, key]
        assert margin == pytest.approx(wanted, rel=1e-3, abs=1e-3) and tokens == lengths
