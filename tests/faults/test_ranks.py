"""Two processes of which one is killed: the other stops within seconds, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from preftune.train.checkpoint import checkpoints, problem
from preftune.train.record import read_log
from tests.faults.same import OF_THE_CLOCK

pytestmark = pytest.mark.slow
SCRIPT = """
import os, signal, sys
from preftune.cli.main import main
from tests.faults.faults import at_step, skip_plots

def die():
    if os.environ["RANK"] == "1" and sys.argv[2] != "none":
        os.kill(os.getpid(), int(sys.argv[2]))

at_step(6, die)
skip_plots()
sys.exit(main(["train", "recipe.yaml", f"output_dir={sys.argv[1]}", *sys.argv[3:]]))
"""


def launch(work, port, *words):
    (work / "two.py").write_text(SCRIPT)
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "two.py"]
    return subprocess.run(
        [*command, *words], cwd=work, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def logged(work, output):
    records = read_log(work / output / "log.jsonl")
    return [{key: value for key, value in record.items() if key not in OF_THE_CLOCK} for record in records]


def test_a_killed_rank_stops_the_other_and_the_run_goes_on(work):
    done = launch(work, "29751", "pair", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    began = time.perf_counter()
    done = launch(work, "29752", "pair-killed", str(int(signal.SIGKILL)))
    print(f"both had ended {time.perf_counter() - began:.0f} s after the start")
    assert done.returncode != 0
    assert "TrainingError: Another process of this run has gone" in done.stderr
    assert "checkpoint-4 is intact" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr  # of rank 1, by the launcher
    assert problem(checkpoints(work / "pair-killed")[0]) is None
    done = launch(work, "29753", "pair-killed", "none", "resume_from_checkpoint=true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged(work, "pair-killed") == logged(work, "pair")


def test_sigterm_to_one_rank_saves_in_both(work):
    done = launch(work, "29754", "pair-term", str(int(signal.SIGTERM)))
    assert done.returncode != 0
    assert checkpoints(work / "pair-term")[0].name == "checkpoint-6", done.stderr[-3000:]
    assert problem(checkpoints(work / "pair-term")[0]) is None
