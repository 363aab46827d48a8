"""A sweep whose runs train together: who joins whom, and that its table is the other's."""

import json

import pytest

from preftune.cli.main import main
from preftune.experiments.arms import run_arms
from preftune.experiments.sweep import Plan, make_arm
from preftune.experiments.together import joined


def arms_of(tmp_path, recipe, *settings, seeds=(0,), overrides=("use_peft=true",)):
    plan = Plan(recipe=recipe, overrides=overrides, settings=settings, seeds=seeds, folder=tmp_path)
    return [make_arm(plan, one, seed) for one in settings for seed in seeds]


def test_arms_of_one_seed_are_joined(tmp_path, recipe):
    arms = arms_of(tmp_path, recipe, {"beta": 1}, {"beta": 2}, {"objective": "dpo"}, seeds=(0, 1))
    groups = joined(arms)
    assert [[arm.seed for arm in group] for group in groups] == [[0, 0, 0], [1, 1, 1]]
    assert [arm.settings for arm in groups[0]] == [{"beta": 1}, {"beta": 2}, {"objective": "dpo"}]


def test_what_stays_out_is_said_with_the_reason(tmp_path, recipe, caplog):
    arms = arms_of(tmp_path, recipe, {"lora_r": 4}, {"lora_r": 8}, {"use_peft": False})
    assert joined(arms) == []
    assert "no other has the same data, model, adapter and seed" in caplog.text
    assert "'use_peft' is false" in caplog.text


def test_arms_that_are_refused_together_train_one_by_one(tmp_path, recipe, verbs, caplog):
    arms = arms_of(tmp_path, recipe, {"beta": 1}, {"beta": 2})
    verbs.answer = lambda words: (2, "a weight is trained whole") if "--together" in words else (0, "{}")
    outcomes = run_arms(arms, tmp_path, groups=[arms])
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert ["--together" in words for words in verbs.started] == [True, False, False]
    assert f"Not together, but run by run: {arms[0].name}, {arms[1].name} (a weight is trained whole)." in caplog.text


def test_a_process_that_dies_leaves_its_arms_to_the_next_start(tmp_path, recipe, verbs):
    arms = arms_of(tmp_path, recipe, {"beta": 1}, {"beta": 2})
    verbs.answer = lambda words: (1, "killed")
    outcomes = run_arms(arms, tmp_path, groups=[arms])
    assert [(outcome.state, outcome.said) for outcome in outcomes] == [("failed", "killed")] * 2
    assert len(verbs.started) == 1


@pytest.mark.slow
def test_a_sweep_together_ranks_as_one_run_by_run(tmp_path, recipe, capsys):
    words = ["sweep", str(recipe), "use_peft=true", "watch=false", "--measure", "eval_loss", "--minimize"]
    words += ["--try", "learning_rate=1e-3,1e30", "--output"]
    assert main([*words, str(tmp_path / "alone")]) == 0
    assert main([*words, str(tmp_path / "joint"), "--together"]) == 0
    alone, joint = (json.loads((tmp_path / name / "sweep.json").read_text())["settings"] for name in ("alone", "joint"))
    for one, other in zip(alone, joint, strict=True):
        assert one["settings"] == other["settings"]
        assert one["measures"]["eval_loss"]["mean"] == pytest.approx(other["measures"]["eval_loss"]["mean"], abs=1e-5)
        assert [arm["state"] for arm in one["arms"]] == [arm["state"] for arm in other["arms"]]
    assert joint[-1]["arms"][0]["state"] == "failed"
    assert "non-finite" in joint[-1]["arms"][0]["said"]
    assert (tmp_path / "joint" / "winner.yaml").read_text().count("learning_rate") == 1
    assert len(list((tmp_path / "joint").glob("together-*.log"))) == 1
