"""The paper's baselines over real runs of a small model, measured alike."""

import json

import pytest
import yaml

from preftune.cli.main import main
from preftune.experiments.bakeoff import METHODS, base_recipe, settings_of
from preftune.experiments.sweep import Plan, make_arm


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
    assert "which sft, kto do not train on. Leave sft, kto out" in capsys.readouterr().err


def test_kto_has_no_accuracy_and_the_others_do_without(recipe, tmp_path, verbs):
    verbs.answer = lambda words: (1, "enough")
    for methods, accuracy in ((["kto", "dpo"], False), (["rrhf", "dpo"], True)):
        folder = tmp_path / "-".join(methods)
        assert main(["bakeoff", str(recipe), "--methods", *methods, "--output", str(folder)]) == 1
        for row in json.loads((folder / "bakeoff.json").read_text())["settings"]:
            assert ("accuracy" in row["measures"]) == accuracy


def test_what_is_said_of_a_reference_is_for_the_methods_that_have_one(recipe, tmp_path, chat_model):
    said = {"reference_model_name_or_path": str(chat_model), "precompute_reference": True, "reference_cache": "kept"}
    said["reference_model_revision"] = "one"
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "objective": "dpo", **said}))
    settings = settings_of(["dpo", "simpo"], {}, search=False)
    plan = Plan(base_recipe(recipe, tmp_path / "out"), (), tuple(settings), (0,), tmp_path / "out")
    dpo, simpo = (yaml.safe_load(make_arm(plan, one, 0).recipe) for one in settings)
    assert {key: dpo[key] for key in said} == said
    assert {key: simpo[key] for key in said} == dict.fromkeys(said) | {
        "precompute_reference": False,
        "reference_model_revision": "main",
    }


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
