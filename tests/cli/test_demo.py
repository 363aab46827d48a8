"""`preftune demo` in-process: what is asked of the demo."""

import sys
import types
from pathlib import Path

import pytest

from preftune.cli.main import main


@pytest.fixture
def runs(monkeypatch):
    calls = []
    module = types.ModuleType("preftune.demo.run")
    module.run_demo = lambda **values: calls.append(values)
    monkeypatch.setitem(sys.modules, "preftune.demo.run", module)
    return calls


def test_without_options_the_demo_runs_once(runs):
    assert main(["demo"]) == 0
    assert runs == [{"output": Path("runs/demo"), "seed": 0, "swap": False}]


def test_options_reach_the_demo(runs):
    assert main(["demo", "--output", "x", "--seed", "2", "--swap"]) == 0
    assert runs == [{"output": Path("x"), "seed": 2, "swap": True}]


def test_several_seeds_have_a_folder_each(runs):
    assert main(["demo", "--seeds", "0,2", "--output", "x"]) == 0
    assert [(run["seed"], run["output"]) for run in runs] == [(0, Path("x/seed-0")), (2, Path("x/seed-2"))]


@pytest.mark.parametrize("words", [["--seeds", "a,b"], ["--sed", "1"], ["--seed", "x"]])
def test_a_wrong_option_leaves_with_2(runs, words, capsys):
    assert main(["demo", *words]) == 2
    assert "usage: preftune demo" in capsys.readouterr().err
    assert runs == []
