"""What a plan says of memory is what a process holds, within 15 %: two cells of benchmarks/plan_memory.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this installation")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    before = set(sys.modules)
    yield importlib.import_module("plan_memory")
    for name in set(sys.modules) - before:  # `plan`, `report` and others are not for other tests
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["small 32k full", "small 32k lora"])
def test_a_plan_is_within_15_percent_of_what_a_process_holds(bench, name):
    cell = bench.cells()[name]
    held, planned = bench.measure(cell, 1, "gives-back"), bench.plan(cell)["total"]
    assert held > 1 and planned == pytest.approx(held, rel=0.15)
