"""`preftune train` in-process: the dry run, errors, the summary; training itself is tested in tests/train."""

import json
import sys
import types

import pytest

from preftune.cli.main import main
from preftune.errors import CheckpointError, DataError, MissingExtraError, TrainingError
from preftune.recipe import load_recipe

MINIMAL = "model_name_or_path: small\ndataset: pairs.jsonl\n"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL + "beta: 2.5\n")
    return str(path)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The parts behind the verb, replaced: `calls` says what was called, `fails` is what training raises."""
    calls = []
    state = types.SimpleNamespace(calls=calls, fails=None, summary={"loss": 0.5, "train_seconds": 2.0, "other": "x"})

    def train_recipe(recipe):
        calls.append(recipe)
        if state.fails:
            raise state.fails
        return state.summary

    run = types.ModuleType("preftune.train.run")
    run.train_recipe = train_recipe
    run.train = lambda recipe, **values: (recipe, values)
    build = types.ModuleType("preftune.demo.build")
    build.SFT_FOLDER, build.build_sft = "runs/demo/sft", lambda: calls.append("build_sft")
    monkeypatch.setitem(sys.modules, "preftune.train.run", run)
    monkeypatch.setitem(sys.modules, "preftune.demo.build", build)
    monkeypatch.chdir(tmp_path)
    return state


def test_a_dry_run_prints_a_recipe_that_can_be_run(recipe_file, fake, capsys, tmp_path):
    assert main(["train", recipe_file, "seed=7", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# simpo: -log σ(2.5·(A_w - A_l - 0.5))\n")
    (tmp_path / "resolved.yaml").write_text(out)
    assert load_recipe(tmp_path / "resolved.yaml") == load_recipe(recipe_file, ["seed=7"])
    assert fake.calls == []


def test_a_dry_run_as_json(recipe_file, fake, capsys):
    assert main(["train", "--json", "--dry-run", recipe_file, "--beta=3"]) == 0
    assert json.loads(capsys.readouterr().out) == load_recipe(recipe_file, ["beta=3"]).to_dict()


def test_a_recipe_may_be_given_by_overrides_alone(fake, capsys):
    assert main(["train", "model_name_or_path=m", "dataset=d", "--dry-run"]) == 0
    assert "dataset: d\n" in capsys.readouterr().out


def test_training_prints_what_came_out(recipe_file, fake, capsys):
    assert main(["train", recipe_file]) == 0
    out = capsys.readouterr().out
    assert "loss" in out and "0.5" in out and "train_seconds" in out and "other" not in out
    assert fake.calls == [load_recipe(recipe_file)]


def test_training_prints_its_summary_as_json(recipe_file, fake, capsys):
    assert main(["train", recipe_file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fake.summary


def test_the_demo_model_is_built_when_it_is_absent(recipe_file, fake):
    assert main(["train", recipe_file, "model_name_or_path=./runs/demo/sft"]) == 0
    assert fake.calls[0] == "build_sft"


def test_the_demo_model_is_not_built_when_it_is_there(recipe_file, fake, tmp_path):
    (tmp_path / "runs/demo/sft").mkdir(parents=True)
    assert main(["train", recipe_file, "model_name_or_path=runs/demo/sft"]) == 0
    assert "build_sft" not in fake.calls


def test_a_dry_run_builds_nothing(recipe_file, fake):
    assert main(["train", recipe_file, "model_name_or_path=runs/demo/sft", "--dry-run"]) == 0
    assert fake.calls == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("d.jsonl[train] row 3: no."), 2, "DataError: d.jsonl[train] row 3: no.\n"),
        (CheckpointError("torn."), 2, "CheckpointError: torn.\n"),
        (TrainingError("not finite."), 1, "TrainingError: not finite.\n"),
        (MissingExtraError("zstd", "zstd"), 2, "MissingExtraError: zstd needs the 'zstd' extra"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (KeyboardInterrupt("saved; go on"), 130, "Interrupted: saved; go on\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(recipe_file, fake, capsys, error, code, line):
    fake.fails = error
    assert main(["train", recipe_file]) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden(recipe_file, fake):
    fake.fails = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        main(["train", recipe_file])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none.yaml"], "RecipeError: none.yaml: there is no such file.\n"),
        (["my.yaml", "betta=2"], "RecipeError: command line: 'betta' is not a key of a recipe; did you mean 'beta'?\n"),
        (["my.yaml", "--beta"], "RecipeError: command line: '--beta' has no value. Write beta=VALUE, with '=' and no "),
        (["my.yaml", "--dryrun"], "RecipeError: command line: '--dryrun' has no value."),
        (
            ["my.yaml", "learning_rate=fast"],
            "RecipeError: command line: 'learning_rate' must be a number, found 'fast'.\n",
        ),
    ],
)
def test_a_mistake_leaves_with_2_and_nothing_behind(recipe_file, fake, capsys, tmp_path, words, line):
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert fake.calls == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_recipe_is_explained_by_the_usage(capsys):
    assert main(["train"]) == 2
    assert "usage: preftune train RECIPE.yaml" in capsys.readouterr().err


def test_train_from_python_works_at_any_time(fake):
    from preftune import train

    assert train("x.yaml", beta=3) == ("x.yaml", {"beta": 3})
    import preftune.train.run
    from preftune import train as again

    assert again is train
    assert preftune.train("x.yaml") == ("x.yaml", {})


def test_the_public_names_are_found_where_they_live():
    import preftune

    for name in set(preftune.__all__) - {"__version__"}:
        assert callable(getattr(preftune, name))
        assert name in dir(preftune)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        preftune.__getattr__("trian")


def test_several_processes_are_started_once_with_the_same_words(recipe_file, fake, monkeypatch):
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("preftune.cli.train.launch", lambda asked, words: started.append((asked.world, words)) or 3)
    assert main(["train", recipe_file, "--nproc", "2", "seed=7"]) == 3
    assert main(["train", "--nproc=4", recipe_file]) == 3
    assert started == [(2, ["train", recipe_file, "seed=7"]), (4, ["train", recipe_file])]
    assert fake.calls == []
    monkeypatch.setenv("WORLD_SIZE", "2")  # inside one of them
    assert main(["train", recipe_file, "--nproc", "2"]) == 0
    assert len(fake.calls) == 1


def test_a_number_of_processes_that_is_none_is_refused(recipe_file, fake, monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["train", recipe_file, "--nproc", "two"]) == 2
    assert "NPROC_PER_NODE must be a whole number of at least 1, found 'two'" in capsys.readouterr().err
