"""A sweep over real runs of a small model, its ranking by hand, and what is left after a stop."""

import json
import math
import subprocess
import sys
import time

import pytest
import yaml

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.errors import RecipeError
from preftune.experiments import arms as arms_module
from preftune.experiments.arms import Arm, Outcome, Step, run_arms
from preftune.experiments.sweep import Plan, half_interval, make_arm, rank, run_sweep
from preftune.experiments.sweep_page import draw, write_sweep


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


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_comes_last_and_does_not_win(tmp_path, recipe, nothing):
    plan = plan_of(tmp_path, recipe=recipe, settings=({"beta": 1}, {"beta": 2}), minimize=True)
    outcomes = [outcome({"beta": beta}, seed, nothing if beta == 1 else 0.5) for beta in (1, 2) for seed in (0, 1)]
    rows = rank(plan, outcomes)
    assert [row.settings["beta"] for row in rows] == [2, 1]
    write_sweep(plan, rows)
    assert yaml.safe_load((tmp_path / "winner.yaml").read_text())["beta"] == 2
    write_sweep(plan, rank(plan, outcomes[:2]))
    assert not (tmp_path / "winner.yaml").exists()


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


def test_a_value_that_comes_twice_is_refused(tmp_path, recipe, capsys):
    assert main(["sweep", str(recipe), "--try", "beta=2,2.0", "--output", str(tmp_path / "out")]) == 2
    assert "beta 2.0 comes twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_that_a_measure_cannot_read_are_refused_before_anything_runs(tmp_path, recipe, verbs, capsys):
    words = ["--try", "beta=1", "--output", str(tmp_path / "out"), "--measure"]
    (tmp_path / "empty.jsonl").write_text('{"prompt": "?"}\n')
    for given, said in {
        ((), "health", "--text", "nosuch.jsonl"): "nosuch.jsonl",
        ((), "reward", "--reward-model", "r", "--prompts", "nosuch.jsonl"): "nosuch.jsonl",
        ((f"eval_dataset={tmp_path / 'empty.jsonl'}",), "likelihood"): "empty.jsonl",
        (("eval_dataset=null", "test_split_size=0.25"), "likelihood"): "Set eval_dataset",
    }.items():
        assert main(["sweep", str(recipe), *given[0], *words, *given[1:]]) == 2
        assert said in capsys.readouterr().err
    assert not verbs.started
    assert not (tmp_path / "out").exists()


def test_measures_read_the_rows_that_the_recipe_holds_out_whatever_their_form(tmp_path, recipe, verbs):
    """Columns of other names, four of the eight rows, and a second file: as one file in standard columns."""
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    named = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows]
    for name, part in (("named", [row | {"system": ""} for row in named]), ("more", named[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = yaml.safe_load(recipe.read_text())
    settings |= {"columns": {"q": "prompt", "good": "chosen", "bad": "rejected"}, "mixer_order": "head"}
    recipe.write_text(
        yaml.safe_dump(settings | {"eval_dataset": [f"{tmp_path / 'named.jsonl'}#4", str(tmp_path / "more.jsonl")]})
    )
    plan = plan_of(tmp_path, recipe=recipe, settings=({"beta": 1},), seeds=(0,), measure="likelihood", also=("health",))
    verbs.answer = lambda words: (1, "enough")
    run_sweep(plan)
    steps = {step.name: step.words for step in make_arm(plan, {"beta": 1}, 0).steps}
    pairs, answers = steps["likelihood"][3], steps["health"][4]
    assert [example.responses for example in load_preferences(pairs)] == [
        (row["chosen"], row["rejected"]) for row in rows
    ]
    read = load_preferences(answers, layout="single")
    assert [(example.prompt[0].content, example.responses) for example in read] == [
        (row["prompt"], (row["chosen"],)) for row in rows
    ]
    assert [example.no_system for example in read] == [True] * 4 + [False] * 4


def arm_of(folder, *steps):
    return Arm(
        "arm", {}, 0, "", tuple(Step(name, (name, f"{folder}/arms/arm/model", *words)) for name, *words in steps)
    )


def test_a_measure_of_other_rows_is_taken_anew_and_the_training_is_not(tmp_path, verbs):
    verbs.answer = lambda words: (0, json.dumps(words))
    run_arms([arm_of(tmp_path, ["train"], ["health", "one.jsonl"])], tmp_path)
    (ended,) = run_arms([arm_of(tmp_path, ["train"], ["health", "two.jsonl"])], tmp_path)
    assert ended.printed["health"][-1] == "two.jsonl"
    assert [words[0] for words in verbs.started] == ["train", "health", "health"]
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    run_arms([arm_of(moved, ["train"], ["health", "two.jsonl"])], moved)
    assert len(verbs.started) == 3
    moved.rename(tmp_path)


def test_a_measure_that_failed_is_nothing_to_another(tmp_path, verbs):
    verbs.answer = lambda words: (2, "no such file") if words[0] == "health" else (0, "{}")
    (first,) = run_arms([arm_of(tmp_path, ["train"], ["health", "nosuch.jsonl"])], tmp_path)
    assert (first.state, first.said) == ("failed", "no such file")
    (second,) = run_arms([arm_of(tmp_path, ["train"])], tmp_path)
    assert (second.state, second.said) == ("done", "")


def test_fresh_answers_to_other_prompts_are_other_files(tmp_path, recipe):
    def written(**changes):
        plan = plan_of(tmp_path, recipe=recipe, measure="reward", **{"prompts": "a", "reward_model": "r"} | changes)
        steps = {step.name: step.words for step in make_arm(plan, {"beta": 1}, 0).steps}
        return steps["fresh"][4], steps["score"][3]

    fresh, scored = written()
    assert written() == (fresh, scored)
    assert written(reward_model="s")[0] == fresh and written(reward_model="s")[1] != scored
    assert not {fresh, scored} & {*written(prompts="b"), *written(max_tokens=8)}


def test_an_error_ends_the_runs_beside_it(tmp_path, monkeypatch):
    started = []

    def open_one(*arguments):
        if started:
            raise OSError("no more processes")
        started.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(arms_module, "_open", open_one)
    arms = [Arm(name, {}, 0, "", (Step("train", ("train",)),)) for name in "ab"]
    with pytest.raises(OSError, match="no more processes"):
        run_arms(arms, tmp_path, jobs=2)
    assert started[0].poll() is not None


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
