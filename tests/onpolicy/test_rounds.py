"""The recipe of `preftune onpolicy`, and the commands that it becomes."""

from __future__ import annotations

import json

import pytest
import yaml

from preftune.errors import RecipeError
from preftune.onpolicy.plan import load_plan
from preftune.onpolicy.rounds import _row, flags, steps, table

GIVEN = {
    "model_name_or_path": "start",
    "prompts": "prompts.jsonl",
    "sample": {"max_tokens": 64, "seeds": [1, 2]},
    "annotate": {"reward_model": "reward"},
    "train": {"objective": "simpo", "learning_rate": "5e-7"},
    "rounds": 2,
}


@pytest.fixture
def plan_of(tmp_path):
    def build(*overrides, **changes):
        file = tmp_path / "chain.yaml"
        file.write_text(yaml.safe_dump({**GIVEN, "output_dir": str(tmp_path / "run"), **changes}), encoding="utf-8")
        return load_plan(file, list(overrides))

    return build


def test_a_round_is_sample_annotate_pairs_train_and_a_measure(plan_of, tmp_path):
    plan = plan_of("train.learning_rate=3e-7", "sample.temperature=0.5")
    folder = tmp_path / "run/round-2"
    folder.mkdir(parents=True)
    found = list(steps(plan, 2, folder))
    assert [step.words[0] for step in found] == ["sample", "annotate", "pairs", "train", "sample", "annotate"]
    sample, annotate, _, train, fresh, _ = (step.words for step in found)
    before = str(tmp_path / "run/round-1/model")
    assert sample[1:3] == (before, "prompts.jsonl")
    assert " ".join(sample).endswith("--max-tokens 64 --seeds 1 2 --temperature 0.5")
    assert annotate[-2:] == ("--reward-model", "reward")
    assert fresh[1] == str(folder / "model") and " ".join(fresh).endswith("--max-tokens 64 --seeds 1 --temperature 0.5")
    recipe = yaml.safe_load(found[3].recipe)
    assert recipe["model_name_or_path"] == before and float(recipe["learning_rate"]) == 3e-7
    assert recipe["dataset"] == str(folder / "pairs/train.jsonl") and "eval_dataset" not in recipe
    assert train == ("train", str(folder / "recipe.yaml"), "resume_from_checkpoint=auto")


def test_the_start_is_only_measured(plan_of, tmp_path):
    found = list(steps(plan_of(eval_prompts=["heldout.jsonl"]), 0, tmp_path / "start"))
    assert found[0].words[:3] == ("sample", "start", "heldout.jsonl") and len(found) == 2


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"annotate": {}}, "'annotate' is missing. Say who scores"),
        ({"model": "x"}, "'model' is not a key of an on-policy recipe"),
        ({"round": 3}, "did you mean 'rounds'?"),
        ({"rounds": 0}, "'rounds' must be a whole number of at least 1, found 0"),
        ({"prompts": 5}, "'prompts' must be a file or a list of files, found 5"),
        ({"eval_prompts": {"a": "b"}}, "'eval_prompts' must be a file or a list of files, found {'a': 'b'}"),
        ({"prompts": ["a.jsonl", None]}, "'prompts' must be a file or a list of files, found ['a.jsonl', None]"),
        ({"sample": "fast"}, "'sample' must be a map of settings, found 'fast'"),
        ({"train": {"dataset": "x.jsonl"}}, "'train.dataset' is set by the chain itself"),
        ({"pairs": {"output": "x"}}, "'pairs.output' is set by the chain itself"),
    ],
)
def test_a_wrong_recipe_is_one_line(plan_of, changes, line):
    with pytest.raises(RecipeError, match=r"chain\.yaml: ") as error:
        plan_of(**changes)
    assert line in str(error.value)


def test_options_become_flags():
    words = flags({"max_tokens": 5, "seeds": [1, 2], "trust_remote_code": True, "json": False, "system": None})
    assert words == ["--max-tokens", "5", "--seeds", "1", "2", "--trust-remote-code"]


def test_the_table_shows_each_round():
    start = {"round": 0, "reward": 0.5, "tokens": 20.0, "answers": 9, "over_start": 0.5}
    last = {**start, "round": 1, "reward": 0.75, "over_start": 0.8, "pairs": 7, "accuracy": None}
    lines = table([start, last]).splitlines()
    assert lines[2] == "| start | 0.5 |  | 20.0 | 9 |  |  |" and lines[3] == "| 1 | 0.75 | 80.0% | 20.0 | 9 | 7 |  |"


def test_what_is_not_known_is_an_empty_cell(tmp_path, caplog):
    """A ranker has nothing to compare one answer with; a server need not count tokens."""
    row = {"prompt_id": "a", "scores": [None], "sampled": {"tokens": [None]}}
    for name, scores in {"start": [2.0], "round-1": [None]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "fresh-scored.jsonl").write_text(json.dumps({**row, "scores": scores}) + "\n")
    start = _row(tmp_path / "start", 0, tmp_path / "start")
    (tmp_path / "round-1" / "pairs").mkdir()
    (tmp_path / "round-1" / "pairs" / "pairs-report.json").write_text('{"kept": 7}')
    (tmp_path / "round-1" / "model").mkdir()
    (tmp_path / "round-1" / "model" / "summary.json").write_text('{"metrics": {}}')
    last = _row(tmp_path / "round-1", 1, tmp_path / "start")
    assert (start["reward"], last["reward"], last["over_start"], last["tokens"]) == (2.0, None, None, None)
    assert table([start, last]).splitlines()[2:] == ["| start | 2 |  |  | 1 |  |  |", "| 1 |  |  |  | 1 | 7 |  |"]
    assert "round-1: no fresh answer has a score" in caplog.text
