"""A run's figures, written for wandb (offline) and trackio (a local file) and read back.

Neither is part of `make setup`: with their requirements they take some 100 MB. `docs/metrics.md` says with which
releases this was run.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from preftune.train.record import read_log
from tests.train.test_run import model_folder, work  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NAMES = ("loss", "rewards/accuracies", "rewards/margins")


def run(work, tracker, environment):  # noqa: F811
    """In a process of its own, at whose end a tracker writes what it still has; returns the lines of the log."""
    words = [f"{key}={value}" for key, value in {**work, "report_to": tracker, "logging_steps": 1}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "preftune", "train", *words, "output_dir=run", "run_name=mine"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be used" not in done.stderr
    return [line for line in read_log(Path("run/log.jsonl")) if "loss" in line]


def test_wandb_offline(work):  # noqa: F811
    log = run(work, "wandb", {"WANDB_MODE": "offline", "WANDB_DIR": "."})
    (written,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    found = [record for record in wandb_history(written) if "train/loss" in record]
    for name in NAMES:
        assert [(line["train/global_step"], line[f"train/{name}"]) for line in found] == [
            (line["step"], pytest.approx(line[name], rel=1e-5, abs=1e-6)) for line in log
        ]


def wandb_history(path):
    """A file of records, each cut into pieces within blocks of 32 KiB: checksum, length, kind (1 whole, 4 last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, piece = Record.FromString(piece), b""
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_trackio(work, tmp_path, monkeypatch):  # noqa: F811
    log = run(work, "trackio", {"TRACKIO_DIR": str(tmp_path / "kept")})
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    read = "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
    read += "print(json.dumps(S.get_logs('huggingface', 'mine')))"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line for line in json.loads(done.stdout.splitlines()[-1]) if "train/loss" in line]
    for name in NAMES:
        assert [line[f"train/{name}"] for line in found] == [
            pytest.approx(line[name], rel=1e-5, abs=1e-6) for line in log
        ]


# What is not installed has no test here.
if find_spec("wandb") is None:
    del test_wandb_offline
if find_spec("trackio") is None:
    del test_trackio
