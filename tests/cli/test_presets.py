"""`preftune presets` and `preftune train --preset`."""

import json

import pytest

from preftune.cli.main import main


def test_presets_are_listed_a_line_each(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("llama3-instruct-v2 ") and "SimPO, Llama3-Instruct v0.2" in line for line in lines)


def test_presets_as_json_hold_the_settings(capsys):
    assert main(["presets", "--json"]) == 0
    facts = {preset["name"]: preset for preset in json.loads(capsys.readouterr().out)}
    v2 = facts["llama3-instruct-v2"]
    assert v2["model_name_or_path"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert v2["dataset"] == {"princeton-nlp/llama3-ultrafeedback-armorm": 1.0}
    assert v2["objective"] == "simpo: -log σ(10·(A_w - A_l - 0.3))"
    assert v2["learning_rate"] == 1e-6
    assert facts["mistral-base-dpo"]["objective"] == "dpo: -log σ(0.01·(r_w - r_l))"


def test_a_preset_is_trained_on_a_model_and_data_of_ones_own(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    words = ["--preset", "llama3-instruct-v2", "--model", "my/model", "--data", str(data), "learning_rate=5e-7"]
    assert main(["train", *words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model_name_or_path"], found["dataset"]) == ("my/model", str(data))
    assert (found["beta"], found["gamma_beta_ratio"], found["learning_rate"]) == (10.0, 0.3, 5e-7)
    assert found["max_length"] == 2048


def test_model_and_data_go_with_a_file_too(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("beta: 3\n")
    assert main(["train", str(tmp_path / "my.yaml"), "--model", "m", "--data", "d", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["beta"] == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--preset", "llama3"], "RecipeError: 'llama3' is not a preset; did you mean 'llama3-"),
        (["my.yaml", "--preset", "gemma"], "RecipeError: 'my.yaml' and --preset gemma are both recipes. Keep one"),
        (
            ["--preset", "gemma", "betta=2"],
            "RecipeError: command line: 'betta' is not a key of a recipe; did you mean ",
        ),
    ],
)
def test_a_mistake_is_one_line(words, line, capsys):
    assert main(["train", *words, "--dry-run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)
