"""A dialogue of 32k tokens trains on one device, within the memory that is planned for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = (64, 1, 32_000)


@pytest.fixture
def bench(monkeypatch):
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this installation")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    before = set(sys.modules)
    yield importlib.import_module("long_rows")
    for name in set(sys.modules) - before:  # `plan`, `report` and others are not for other tests
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_a_row_of_32k_tokens_is_held_within_the_plan_and_grows_with_its_length(bench):
    """Packed, the head in tiles, layers checkpointed: four times the tokens take no more than four times the memory."""
    cells = {length: {**bench.cell(length, TINY), "steps": 1} for length in (8192, 32768)}
    held = {length: bench.measure(cell, 1, "gives-back") for length, cell in cells.items()}
    assert held[32768] <= 1.15 * bench.plan(cells[32768])["total"]
    assert held[32768] < 4 * held[8192]
    assert held[32768] < 1.0  # GiB; the logits of the responses alone would be 0.12, those of all tokens 3.9
