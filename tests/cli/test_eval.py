"""`preftune eval`: each step on files, its exit codes and its one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from preftune.cli.main import main
from preftune.evaluation.files import read_rows
from tests.endpoint.server import Script, serving

TEMPLATE = "<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n{instruction} {output_1} {output_2}\n<|im_end|>"


@pytest.fixture
def files(tmp_path):
    """A folder with twelve outputs of a model and a baseline, and a judge's prompt."""
    for name in ("model", "baseline"):
        rows = [{"instruction": f"q{n}", "output": name * (n % 4 + 1), "generator": name} for n in range(12)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "clf.txt").write_text(TEMPLATE)
    return tmp_path


def judge_words(files, url):
    return ["alpaca-eval", "judge", str(files / "model.json"), "--baseline", str(files / "baseline.json"), "--output",
            str(files / "annotations.json"), "--template", str(files / "clf.txt"), "--endpoint", url, "--judge", "j",
            "--concurrency", "1"]  # fmt: skip


def test_annotations_are_scored_with_and_without_length_control(tmp_path, capsys):
    rows = [
        {"instruction": f"q{n}", "output_1": "x" * 20, "output_2": "x" * (15 + n), "generator_1": "b",
         "generator_2": "m", "annotator": "mine", "preference": 1.9 if n > 3 else 1.2}
        for n in range(20)
    ]  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    assert main(["eval", "alpaca-eval", "score", str(path), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["win_rate"] == pytest.approx(76) and plain["annotator"] == "mine" and plain["avg_length"] == 24
    assert "length_controlled_winrate" not in plain
    assert main(["eval", "alpaca-eval", "score", str(path), "--minimal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lc_variant"] == "minimal"
    for words, message in (
        (["--difficulties", "d.csv"], "needs both files"),
        (["--difficulties", "d.csv", "--gamed", "g.csv"], "judged by 'mine'"),
        (["--minimal", "--gamed", "g.csv"], "takes neither"),
    ):
        assert main(["eval", "alpaca-eval", "score", str(path), *words]) == 2
        assert message in capsys.readouterr().err


def test_two_annotators_are_not_scored_together(tmp_path, capsys):
    row = {"instruction": "q", "output_1": "x", "output_2": "y", "preference": 1.5}
    (tmp_path / "a.json").write_text(json.dumps([row | {"annotator": "one"}, row | {"annotator": "two"}]))
    assert main(["eval", "alpaca-eval", "score", str(tmp_path / "a.json")]) == 2
    assert "expected one annotator, found 2: one, two" in capsys.readouterr().err


def test_the_published_figures_of_a_real_model_come_from_the_command(real_eval, capsys):
    folder = real_eval / "alpaca_eval2"
    words = ["eval", "alpaca-eval", "score", str(folder / "annotations/FuseChat-Gemma-2-9B-Instruct.json.gz"), "--json",
             "--difficulties", str(folder / "instruction_difficulty.csv"), "--gamed",
             str(folder / "df_gamed_surrogate.csv.gz")]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["win_rate"] == pytest.approx(70.497135, abs=1e-6)
    assert found["length_controlled_winrate"] == pytest.approx(70.18106, abs=0.2)


def test_arena_hard_and_mt_bench_judgments_are_scored(tmp_path, capsys):
    games = [
        {"question_id": n, "model": "m", "judge": "j", "games": [{"score": "B>A"}, {"score": "A=B"}]} for n in "ab"
    ]
    (tmp_path / "arena.jsonl").write_text("".join(json.dumps(row) + "\n" for row in games))
    assert main(["eval", "arena-hard", "score", str(tmp_path / "arena.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 75
    rated = [
        {"question_id": 1, "model": "m", "judge": ["j", "single-v1"], "turn": turn, "score": 6 + turn}
        for turn in (1, 2)
    ]
    (tmp_path / "mt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    assert main(["eval", "mt-bench", "score", str(tmp_path / "mt.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 7.5
    assert main(["eval", "mt-bench", "score", str(tmp_path / "mt.jsonl")]) == 0
    assert "by_turn 1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_judging_that_is_killed_goes_on_where_it_was(files, capsys):
    script = Script(delay=0.15)
    with serving(script) as url:
        command = [sys.executable, "-m", "preftune", "eval", *judge_words(files, url)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            until = time.monotonic() + 30
            while len(script.asked) < 4 and time.monotonic() < until:
                time.sleep(0.02)
            os.kill(child.pid, signal.SIGKILL)
        before = len(script.asked)
        assert 4 <= before < 12 and not (files / "annotations.json").exists()
        assert main(["eval", *judge_words(files, url)]) == 0
    assert len(script.asked) <= 12 + 1  # the one under way may be asked again
    assert len(read_rows(files / "annotations.json")) == 12


def test_the_estimate_comes_before_the_first_request_and_the_budget_stops(files, capsys):
    script, cap = Script(), ("--prices", "100", "100", "--budget", "0.02")
    with serving(script) as url:
        assert main(["eval", *judge_words(files, url), *cap]) == 1
        said = capsys.readouterr().err
        assert "12 requests" in said and "The budget is spent" in said
        asked = len(script.asked)
        assert 0 < asked < 12 and not (files / "annotations.json").exists()
        assert main(["eval", *judge_words(files, url), *cap]) == 1  # what was spent before counts
        assert len(script.asked) == asked
        assert main(["eval", *judge_words(files, url), *cap[:-1], "1"]) == 0
        assert len(script.asked) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "http://localhost:1/v1"], "needs --judge"),
        ([], "Give one judge"),
        (["--endpoint", "http://localhost:1/v1", "--judge", "j", "--budget", "1"], "needs --prices"),
    ],
)
def test_a_judge_that_is_not_said_whole_is_one_line(files, words, message, capsys):
    start = ["eval", "alpaca-eval", "judge", str(files / "model.json"), "--baseline", str(files / "baseline.json"),
             "--output", str(files / "a.json"), "--template", str(files / "clf.txt")]  # fmt: skip
    assert main([*start, *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


@pytest.fixture
def real_eval():
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("real files of the benchmarks: set PREFTUNE_TEST_DATA to the folder that holds them")
    from pathlib import Path

    return Path(folder) / "eval"
