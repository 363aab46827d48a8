"""The growth benchmark runs end to end on a tiny model, and its slopes are what they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_run_writes_tables_and_a_plot(tmp_path):
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = ["--tiny", "--axes", "prompt,ranks", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]

    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "growth.py"), *words],
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert {key: bool(record[key]) for key in ("machine", "date", "commit", "command")} == dict.fromkeys(
        ("machine", "date", "commit", "command"), True
    )
    assert [(s["design"], s["point"]["prompt"]) for s in record["samples"] if s["point"]["axis"] == "prompt"] == [
        (design, prompt) for prompt in (4, 16, 32, 48) for design in ("preftune", "padded")
    ]
    assert [s["point"]["ranks"] for s in record["samples"] if s["point"]["axis"] == "ranks"] == [1, 2]
    assert "## What one more costs" in (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def samples(growth, design, per_token):
    points = growth.AXES["prompt"]
    return [growth.GrowthSample(design, p, [99.0, 0.5 + per_token * p.prompt * p.pairs], 100.0) for p in points]


def test_a_slope_is_what_one_more_token_costs(bench):
    growth, page = bench("growth"), bench("growth_page")

    measured = samples(growth, "preftune", 0.001)

    assert page.slope(measured, "preftune", "prompt", "seconds") == pytest.approx(0.001)
    assert page.slope(measured, "preftune", "prompt", "memory") == 0.0


def test_prompt_costs_are_set_against_every_padded_design(bench):
    growth, page = bench("growth"), bench("growth_page")
    measured = [*samples(growth, "preftune", 0.001), *samples(growth, "padded", 0.005), *samples(growth, "trl", 0.01)]

    costs = {other: ours / theirs for other, ours, theirs in page.prompt_costs(measured)}

    assert costs == {"padded": pytest.approx(0.2), "trl": pytest.approx(0.1)}
