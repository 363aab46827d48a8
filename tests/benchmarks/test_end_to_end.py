"""The end-to-end benchmark trains to its target on made-up pairs, and counts seconds as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_run_reaches_its_target(tmp_path):
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "end_to_end.py"),
         "--tiny", "--repeats", "1", "--threads", "1", "--precision", "fp32", "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": search_path}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "end_to_end.json").read_text(encoding="utf-8"))
    assert all(record[key] for key in ("machine", "date", "commit", "command"))
    (run,) = record["runs"]
    assert [step for step, _, _ in run["curve"]] == [4, 8, 12]  # 96 pairs in steps of 8, looked at every 4
    assert run["curve"][-1][2] >= record["recipe"]["target"]
    # BOS, user : \n, 6 words, \n, assistant : \n with 4 + EOS chosen and 3 + EOS rejected
    assert run["tokens"] == 96 * (2 * (1 + 3 + 6 + 1 + 3) + 5 + 4)
    assert "not reached" not in (tmp_path / "end_to_end.md").read_text(encoding="utf-8")
    assert (tmp_path / "end_to_end.png").stat().st_size > 5_000


def test_seconds_to_target_are_preparation_and_training_up_to_the_first_evaluation_there(bench):
    run = bench("end_to_end").Run("preftune", 1, 2.0, 9.0, [(10, 3.0, 0.6), (20, 6.0, 0.9), (30, 9.0, 0.8)], 0, {})

    assert run.seconds_to(0.85) == 8.0
    assert run.seconds_to(0.95) is None


def test_the_clock_stands_still_during_an_evaluation(bench, monkeypatch):
    worker = bench("worker_end_to_end")
    ticks = iter([100.0, 103.0, 150.0, 160.0, 200.0])  # begin, an evaluation of 47 s, another of 40 s
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(ticks))
    clock = worker.Clock()

    class State:
        global_step = 10

    clock.on_train_begin(None, State, None)
    evaluate = clock.around(lambda: clock.on_log(None, State, None, logs={worker.ACCURACY: 0.7}))
    evaluate()
    evaluate()

    assert clock.curve == [(10, 3.0, 0.7), (10, 13.0, 0.7)]
    assert clock.paused == 87.0


def test_rows_stand_in_the_order_in_which_the_trainer_shuffles_them(bench, tmp_path):
    from preftune.data.plan import epoch_order

    end_to_end = bench("end_to_end")
    rows = end_to_end.made_up_rows(5, seed=0)

    end_to_end.write_rows(tmp_path, rows, rows[:1], end_to_end.Recipe(epochs=2, seed=3))

    ordered = [json.loads(line) for line in (tmp_path / "ordered.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ordered == [rows[number] for epoch in (0, 1) for number in epoch_order(5, 3, epoch)]


def test_rows_come_back_as_they_were_but_for_those_without_a_difference(bench, tmp_path):
    end_to_end, worker = bench("end_to_end"), bench("worker_end_to_end")
    rows = end_to_end.made_up_rows(2, seed=0)
    rows[0]["chosen"][0]["content"] = "one\u2028two\x85three"
    same = {**rows[1], "chosen": rows[1]["rejected"]}
    spaced = {**rows[1], "chosen": [{"role": "assistant", "content": rows[1]["rejected"][0]["content"] + "\n"}]}

    end_to_end.write_lines(tmp_path / "a.train.jsonl", [rows[0], same, spaced, rows[1]])

    assert end_to_end.read_rows(tmp_path, "train") == rows
    assert worker.read_lines(tmp_path / "a.train.jsonl") == [rows[0], same, spaced, rows[1]]
