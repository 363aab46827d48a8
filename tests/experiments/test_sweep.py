"""A sweep over real runs of a small model, its ranking by hand, and what is left after a stop."""

import json
import math
import subprocess
import sys
import time

import pytest
import yaml

from preftune.cli.main import main
from preftune.errors import RecipeError
from preftune.experiments.arms import Arm, Outcome, run_arms
from preftune.experiments.sweep import Plan, half_interval, make_arm, rank
from preftune.experiments.sweep_page import draw


def outcome(settings, seed, accuracy, state="done"):
    arm = Arm(f"{settings}-{seed}", settings, seed, "", ())
    return Outcome(arm, state, {"train": {"metrics": {"eval_rewards/accuracies": accuracy}}})


def plan_of(tmp_path, **changes):
    settings = ({"beta": 1}, {"beta": 2}, {"beta": 3})
    return Plan(
        **{"recipe": tmp_path / "r.yaml", "overrides": (), "settings": settings, "seeds": (0, 1), "folder": tmp_path}
        | changes
    )


def test_the_mean_over_seeds_ranks_and_a_collapsed_seed_comes_last(tmp_path):
    outcomes = [
        outcome({"beta": 1}, 0, 0.5), outcome({"beta": 1}, 1, 0.7),
        outcome({"beta": 2}, 0, 0.8), outcome({"beta": 2}, 1, 0.6),
        outcome({"beta": 3}, 0, 1.0), outcome({"beta": 3}, 1, 1.0, "collapsed"),
    ]  # fmt: skip
    rows = rank(plan_of(tmp_path), outcomes)
    assert [row.settings["beta"] for row in rows] == [2, 1, 3]
    assert rows[0].mean == pytest.approx(0.7)
    assert rows[0].half_of("accuracy") == pytest.approx(
        12.706 * 0.1
    )  # deviation 0.1414 over the root of 2, one degree of freedom
    assert not rows[2].whole


def test_a_lower_measure_can_be_the_better_one(tmp_path):
    outcomes = [outcome({"beta": beta}, seed, beta) for beta in (1, 2, 3) for seed in (0, 1)]
    rows = rank(plan_of(tmp_path, measure="eval_rewards/accuracies", minimize=True), outcomes)
    assert [row.settings["beta"] for row in rows] == [1, 2, 3]


def test_a_measure_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"no metric of the runs.*eval_rewards/accuracies"):
        rank(plan_of(tmp_path, measure="eval_reward/accuracy"), [outcome({"beta": 1}, 0, 0.5)])


def test_intervals_are_students():
    assert half_interval([1.0]) is None
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    twelve = [0.0, 1.0] * 6
    assert half_interval(twelve) == pytest.approx(2.201 * 0.52223 / math.sqrt(12), rel=4e-3)


def test_an_arm_has_its_settings_seed_and_shared_stores(tmp_path, recipe):
    arm = make_arm(plan_of(tmp_path, recipe=recipe, overrides=("objective=dpo",)), {"beta": 0.05}, 7)
    made = yaml.safe_load(arm.recipe)
    assert (made["beta"], made["seed"], made["on_collapse"]) == (0.05, 7, "stop")
    assert made["tokens_cache"] == str(tmp_path / "tokens")
    assert made["precompute_reference"] and made["reference_cache"] == str(tmp_path / "reference")
    assert made["output_dir"] == str(tmp_path / "arms" / arm.name / "model")


def test_another_recipe_is_another_arm(tmp_path, recipe):
    first = make_arm(plan_of(tmp_path, recipe=recipe), {"beta": 2}, 0)
    again = make_arm(plan_of(tmp_path, recipe=recipe), {"beta": 2}, 0)
    other = make_arm(plan_of(tmp_path, recipe=recipe, overrides=("warmup_steps=1",)), {"beta": 2}, 0)
    assert first.name == again.name != other.name


def test_a_wrong_setting_is_refused_before_anything_runs(tmp_path, recipe, capsys):
    assert main(["sweep", str(recipe), "--try", "betta=1,2", "--output", str(tmp_path / "out")]) == 2
    assert "did you mean 'beta'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reward_without_a_reward_model_is_refused(tmp_path, recipe, capsys):
    assert main(["sweep", str(recipe), "--try", "beta=1", "--measure", "reward"]) == 2
    assert "--reward-model and --prompts" in capsys.readouterr().err


def test_two_sweeps_of_one_folder_are_refused(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from preftune.experiments.arms import _alone\n"
        "with _alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RecipeError, match="another process is at work"):
            run_arms([], tmp_path)
        other.kill()


def test_pictures_are_drawn_of_what_was_tried(tmp_path):
    settings = tuple({"beta": beta, "loss_type": kind} for beta in (2, 10) for kind in ("sigmoid", "hinge"))
    plan = plan_of(tmp_path, settings=settings, seeds=(0,))
    outcomes = [outcome(one, 0, one["beta"] / 10) for one in settings[:3]] + [outcome(settings[3], 0, 0, "failed")]
    draw(plan, rank(plan, outcomes))
    for name in ("heat-map.png", "parallel.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_sweep_ranks_stops_collapsed_arms_and_does_nothing_twice(tmp_path, real_recipe, capsys):
    folder = tmp_path / "out"
    words = ["sweep", str(real_recipe), "--try", "learning_rate=1e-4,1e-1", "--output", str(folder)]
    assert main(words) == 0
    record = json.loads((folder / "sweep.json").read_text())
    assert [row["settings"]["learning_rate"] for row in record["settings"]] == [1e-4, 1e-1]
    assert [row["arms"][0]["state"] for row in record["settings"]] == ["done", "collapsed"]
    winner = yaml.safe_load((folder / "winner.yaml").read_text())
    assert winner["learning_rate"] == 1e-4
    assert winner["output_dir"] == "runs/winner"
    assert main(["train", str(folder / "winner.yaml"), "--dry-run"]) == 0
    started = time.monotonic()
    assert main(words) == 0
    assert time.monotonic() - started < 5
    assert json.loads((folder / "sweep.json").read_text()) == record
