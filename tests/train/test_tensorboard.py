"""A run's figures, written for TensorBoard and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune import train
from preftune.train.record import read_log
from tests.train.test_run import model_folder, work  # noqa: F401 (fixtures)

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="make setup has it")


def test_what_tensorboard_reads_is_what_the_log_says(work, monkeypatch):  # noqa: F811
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(None, **{**work, "report_to": "tensorboard", "logging_steps": 1})
    (written,) = Path(work.get("output_dir", "run")).rglob("events.out.tfevents.*")
    read = events.EventAccumulator(str(written.parent)).Reload()
    log = [line for line in read_log(Path(work.get("output_dir", "run")) / "log.jsonl") if "loss" in line]
    for name in ("loss", "rewards/accuracies", "rewards/margins"):
        found = [(event.step, event.value) for event in read.Scalars(f"train/{name}")]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-5, abs=1e-6)) for line in log]
