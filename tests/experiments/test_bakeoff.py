"""The paper's baselines over real runs of a small model, measured alike."""

import json

import pytest
import yaml

from preftune.cli.main import main
from preftune.experiments.bakeoff import METHODS, base_recipe, settings_of


def test_each_method_has_one_setting():
    assert [one["objective"] for one in settings_of(METHODS, {}, search=False)] == list(METHODS)


def test_values_to_try_multiply_every_method():
    found = settings_of(["sft", "dpo"], {"learning_rate": [1e-6, 2e-6]}, search=False)
    assert found == [
        {"objective": "sft", "learning_rate": 1e-6},
        {"objective": "sft", "learning_rate": 2e-6},
        {"objective": "dpo", "beta": 0.01, "learning_rate": 1e-6},
        {"objective": "dpo", "beta": 0.01, "learning_rate": 2e-6},
    ]


def test_the_base_leaves_out_what_belongs_to_an_objective(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model_name_or_path: m\nobjective: simpo\nbeta: 2\nsimpo_gamma: 1.0\nlearning_rate: 1e-6\n")
    kept = yaml.safe_load(base_recipe(recipe, tmp_path / "out").read_text())
    assert kept == {"model_name_or_path": "m", "learning_rate": "1e-6"}


def test_an_unknown_method_is_refused(recipe, tmp_path, capsys):
    assert main(["bakeoff", str(recipe), "--methods", "simp", "--output", str(tmp_path / "out")]) == 2
    assert "did you mean 'simpo'" in capsys.readouterr().err


def test_accuracy_does_not_rank_sft(recipe, tmp_path, capsys):
    assert main(["bakeoff", str(recipe), "--measure", "accuracy", "--output", str(tmp_path / "out")]) == 2
    assert "Leave sft out" in capsys.readouterr().err


@pytest.mark.slow
def test_three_methods_are_measured_alike(recipe, tmp_path, capsys):
    words = ["bakeoff", str(recipe), "watch=false", "--methods", "sft", "kto", "simpo", "--max-tokens", "8"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "bakeoff.json").read_text())["settings"]
    assert {row["settings"]["objective"] for row in rows} == {"sft", "kto", "simpo"}
    for row in rows:
        assert set(row["measures"]) == {"likelihood", "health"}
        assert 0 <= row["measures"]["likelihood"]["mean"] <= 1
    assert "| simpo | beta 2.0, gamma_beta_ratio 0.5 |" in (tmp_path / "out" / "bakeoff.md").read_text()
