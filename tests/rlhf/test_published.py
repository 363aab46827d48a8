"""The published commands, as they are printed: the shell reads them, and of the command only the first word changes."""

import subprocess
from pathlib import Path

import pytest
import yaml

from preftune.cli.main import main
from preftune.recipe import load_recipe

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
COMMANDS = PUBLISHED["commands"]
VARIABLES = ("NPROC_PER_NODE", "CUDA_VISIBLE_DEVICES", "MASTER_PORT")


def read_by_shell(text):
    """The words after `swift`, and the variables that it sees."""
    seen = "; ".join(f'printf "%s\\n" "{name}=${name}"' for name in VARIABLES)
    script = f'unset {" ".join(VARIABLES)}\nswift() {{ {seen}; printf "%s\\n" "$@"; }}\n{text}'
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines[: len(VARIABLES)])
    return lines[len(VARIABLES) :], {name: value for name, value in variables.items() if value}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*VARIABLES, "WORLD_SIZE", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command["name"])
def test_a_published_command_resolves_to_its_documented_meaning(command, monkeypatch, capsys, tmp_path):
    words, variables = read_by_shell(command["text"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*words, "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# {command['headline']}\n")
    (tmp_path / "resolved.yaml").write_text(out, encoding="utf-8")
    found = load_recipe(tmp_path / "resolved.yaml").to_dict()
    expected = {}
    for part in command["uses"]:
        expected |= PUBLISHED[part]
    for key, value in (expected | command["values"]).items():
        assert found[key] == value, key
    steps = found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] * command.get("processes", 1)
    assert steps == 16


@pytest.mark.parametrize(
    "method", ["simpo", "dpo", "kto", "cpo", "orpo", "rm", "ppo", "ipo", "rdpo", "slic_hf", "rrhf"]
)
def test_a_short_verb_is_rlhf_with_its_type(method, capsys):
    words = ["--model_type", "llama3-8b-instruct", "--dataset", "a.jsonl", "--dry_run", "true"]
    words += ["--reward_model", "r"] if method == "ppo" else []
    assert main([method, *words]) == 0
    short = capsys.readouterr().out
    assert main(["rlhf", "--rlhf_type", method, *words]) == 0
    assert capsys.readouterr().out == short


def test_sft_has_a_verb_of_its_own(capsys):
    assert main(["sft", "--model_id_or_path", "m", "--dataset", "a.jsonl", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# SFT\n") and "objective: sft\n" in out and "learning_rate: 0.0001\n" in out


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_first_argument_that_is_a_file_is_read_as_flags(suffix, tmp_path, capsys):
    texts = {
        "yaml": "rlhf_type: simpo\nmodel_id_or_path: m\ndataset: [a.jsonl, b.jsonl]\nlearning_rate: 5e-7\nbeta: 3\n",
        "json": '{"rlhf_type": "simpo", "model_id_or_path": "m", "dataset": ["a.jsonl", "b.jsonl"],'
        ' "learning_rate": "5e-7", "beta": 3}',
    }
    path = tmp_path / f"flags.{suffix}"
    path.write_text(texts[suffix])
    assert main(["rlhf", str(path), "--beta", "4", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert "beta: 4\n" in out.replace("4.0", "4") and "learning_rate: 5.0e-07\n" in out and "- b.jsonl\n" in out


def test_a_dry_run_is_a_recipe_that_train_takes(tmp_path, capsys):
    assert main(["simpo", "--model_type", "qwen2_5-7b-instruct", "--dataset", "a.jsonl", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(out, encoding="utf-8")
    assert main(["train", str(tmp_path / "again.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == out.partition("\n")[2]
