"""A dry run: the recipe on stdout, what the guard rails say on stderr."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from preftune.cli.main import main, run_verb
from preftune.recipe import load_recipe
from preftune.train.forewarn import forewarnings, warning_of_ppo

ROOT = Path(__file__).parents[2]
LLAMA = str(ROOT / "training_configs/llama-3-8b-instruct-simpo.yaml")
RATE, LORA, BATCH = "learning_rate 1e-05 is above 2e-06", "simpo with LoRA", "A step has 32 groups (in 1 process)"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: main(["train", LLAMA, "learning_rate=1e-5", "--dry-run"]), [RATE, BATCH]),
        (lambda: run_verb("run_simpo", [LLAMA, "--learning_rate=1e-5", "--dry-run"]), [RATE, BATCH]),
        (
            lambda: main("simpo --model_type llama3-8b-instruct --dataset d --dry_run true".split()),
            [LORA, "A step has 16 groups (in 1 process)"],
        ),
        (
            lambda: main("dpo --model_id_or_path out/of-reach-7b --dataset d --dry_run true".split()),
            ["A step has 16 groups"],
        ),
        (lambda: main("train --preset mistral-base --dry-run".split()), [BATCH]),
    ],
)
def test_the_guard_rails_speak_on_stderr_and_the_recipe_stays_pure(run, said, capsys):
    assert run() == 0
    out, err = capsys.readouterr()
    for line in said:
        assert line in err
    assert "model_name_or_path" in yaml.safe_load(out)


def test_the_processes_of_the_environment_make_the_batch(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", LLAMA, "--dry-run"]) == 0
    assert "A step has" not in capsys.readouterr().err


def test_of_several_processes_one_prints(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert main(["train", LLAMA, "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_model_whose_size_is_not_known_gets_a_line_and_no_alarm(capsys):
    assert main("train model_name_or_path=owner/name dataset=d learning_rate=1 --dry-run".split()) == 0
    err = capsys.readouterr().err
    assert "The size of 'owner/name' is not known here" in err and "is above" not in err


def test_a_card_without_bfloat16_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr("preftune.train.forewarn.device_without_bf16", lambda on_cpu: None if on_cpu else "Tesla V100")
    recipe = load_recipe(None, {"model_name_or_path": "tiny-1m", "dataset": "d", "bf16": True})
    (line,) = forewarnings(recipe)
    assert line.startswith("bf16: Tesla V100 does not compute in bfloat16")


def test_ppo_looks_at_the_tokenizer_of_the_model(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    recipe = SimpleNamespace(
        objective="ppo", model_name_or_path=str(tmp_path), tokenizer_name_or_path=None, model_revision="main"
    )
    assert "looks like a base model" in warning_of_ppo(recipe)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert warning_of_ppo(recipe) is None


def test_a_batch_for_other_processes_than_are_here_breaks_no_dry_run(capsys):
    assert main(["train", LLAMA, "total_batch_size=128", "gradient_accumulation_steps=16", "--dry-run"]) == 0
    assert "A step has" not in capsys.readouterr().err
