"""The benchmark of compiled layers runs end to end on a tiny model, and says when compiling pays."""

from __future__ import annotations

import json
import math

import pytest


@pytest.mark.slow
def test_tiny_run_writes_a_table(bench, tmp_path, capsys):
    bench("compile").main(["--tiny", "--out", str(tmp_path)])

    record = json.loads((tmp_path / "compile.json").read_text(encoding="utf-8"))
    assert all(record[key] for key in ("machine", "date", "commit", "command"))
    (sample,) = record["samples"]
    assert sample["compile_s"] > 0.1 and sample["graphs"] > 1 and sample["later_graphs"] == 0
    assert sample["loss_gap"] < 1e-4
    assert (tmp_path / "compile.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_it_pays_after_what_compiling_takes_over_what_a_step_saves(bench):
    compile_bench = bench("compile")
    sample = compile_bench.Sample("tiny", "chat", "fp32", 2, 30.0, 2.0, 1.5, 4, 0, 0.0)
    assert sample.pays_after == 60
    slower = compile_bench.Sample("tiny", "chat", "fp32", 2, 30.0, 1.5, 2.0, 4, 0, 0.0)
    assert math.isinf(slower.pays_after)
