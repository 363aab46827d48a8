"""Layers on several devices, on GPUs or on a second kind of device that is built for it: every case of tests/spread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("c++") is None and not torch.cuda.is_available(), reason="needs a C++ compiler")
def test_models_that_lie_on_several_devices_are_those_of_one(tmp_path):
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/spread/cases.py"]
    environment = {
        **os.environ,
        "SECOND_DEVICE_FOLDER": str(tmp_path / "second"),
        "OMP_NUM_THREADS": "1",
        "MAX_JOBS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
