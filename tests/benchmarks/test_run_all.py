"""All benchmarks in one command: what is run, what is left out, what a failure does."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture
def ran(bench, monkeypatch):
    """`run_all` with the commands noted instead of run; `codes` holds the exit codes by script."""
    run_all = bench("run_all")
    commands, codes = [], {}

    def note(command, **keywords):
        script = command[1].rpartition("/")[2]
        commands.append((script, *command[2:]))
        return subprocess.CompletedProcess(command, codes.get(script, 0))

    monkeypatch.setattr(run_all.subprocess, "run", note)
    return run_all, commands, codes


def test_without_real_data_only_what_needs_none_is_run(ran, monkeypatch, capsys):
    run_all, commands, _ = ran
    monkeypatch.delenv("PREFTUNE_TEST_DATA", raising=False)

    assert run_all.main([]) == 0

    assert commands == [("step.py",), ("growth.py",), ("compile.py",)]
    assert "objectives: left out, it needs the folder of real data" in capsys.readouterr().err


def test_with_real_data_all_are_run_on_it(ran, monkeypatch):
    run_all, commands, _ = ran
    monkeypatch.setenv("PREFTUNE_TEST_DATA", "/d")

    assert run_all.main([]) == 0

    assert [script for script, *_ in commands] == [
        "step.py", "growth.py", "compile.py", "end_to_end.py", "tokenization.py", "objectives.py",
    ]  # fmt: skip
    assert commands[3][1:] == ("--data", "/d/preferences/emoji", "--tokenizer", "/d/tokenizers/llama2/hf")


def test_a_failure_does_not_stop_the_others_and_is_said_at_the_end(ran, monkeypatch, capsys):
    run_all, commands, codes = ran
    codes["step.py"] = 1

    assert run_all.main(["--only", "step,growth"]) == 1

    assert len(commands) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "run_all.py: failed: step"


def test_tiny_runs_the_self_tests(ran):
    run_all, commands, _ = ran

    assert run_all.main(["--tiny"]) == 0

    scripts = ("step.py", "growth.py", "compile.py", "end_to_end.py")
    assert commands == [(script, "--tiny") for script in scripts]


def test_the_folder_of_real_data_is_not_written_into_results(bench, monkeypatch):
    monkeypatch.setenv("PREFTUNE_TEST_DATA", "/some/where")

    found = bench("report").describe_run("step.py", ["--data", "/some/where/pairs"])

    assert found["command"] == "python benchmarks/step.py --data $PREFTUNE_TEST_DATA/pairs"
