"""The collapse watch of two processes: they share the prompts, see the same and act together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.train.record import read_log
from tests.train.test_run import model_folder, work  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
HERE = str(Path(__file__).parent.parent.parent)
RUINOUS = ("learning_rate=1.0", "lr_scheduler_type=constant", "warmup_steps=0", "max_grad_norm=1e3")


def run(settings, *words):
    said = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "preftune", "train", *said, "watch_steps=2", "watch_prompts=5", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": HERE}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def looks(folder):
    return [record for record in read_log(Path(folder) / "log.jsonl") if "watch/kl" in record]


def test_two_processes_see_what_one_sees_and_stop_together(work):  # noqa: F811
    one, two = run(work, "output_dir=one"), run(work, "output_dir=two", "--nproc", "2")
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    assert [record["step"] for record in looks("two")] == [0, 2, 4]
    for alone, together in zip(looks("one"), looks("two"), strict=True):
        assert together["watch/chosen"] == pytest.approx(alone["watch/chosen"], abs=1e-4)
        assert together["watch/kl"] == pytest.approx(alone["watch/kl"], abs=1e-4)
    ill = run({**work, "max_steps": 9}, "output_dir=ill", "on_collapse=rollback", *RUINOUS, "--nproc", "2")
    assert ill.returncode == 1, ill.stderr[-3000:]  # ill at the first look: nothing to go back to
    assert "there is no earlier checkpoint. Cause: learning_rate 1" in ill.stderr
