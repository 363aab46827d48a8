"""`scripts/run_simpo.py`: the SimPO repository's command line."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from preftune.cli.main import run_verb

ROOT = Path(__file__).parents[2]
MISTRAL = str(ROOT / "training_configs/mistral-7b-base-simpo.yaml")


def dry_run(capsys, *words):
    assert run_verb("run_simpo", [*words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_published_file_resolves_as_it_stands(capsys):
    found = dry_run(capsys, MISTRAL)
    assert (found["beta"], found["gamma_beta_ratio"], found["learning_rate"]) == (2.0, 0.8, 3e-7)
    assert (found["max_length"], found["max_prompt_length"]) == (1024, 512)


@pytest.mark.parametrize("words", [["--beta=3"], ["--beta", "3"], ["beta=3"]])
def test_overrides_in_each_way_of_writing(words, capsys):
    assert dry_run(capsys, MISTRAL, *words)["beta"] == 3.0


def test_arguments_alone_are_a_recipe_too(capsys):
    found = dry_run(capsys, "--model_name_or_path", "m", "--dataset", "d", "--gamma_beta_ratio", "0.4")
    assert (found["model_name_or_path"], found["gamma_beta_ratio"], found["max_length"]) == ("m", 0.4, 512)


@pytest.mark.parametrize("line", (ROOT / "tests/recipe/published/commands.txt").read_text().splitlines())
def test_a_published_command_line_names_files_that_are_there_and_resolves(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    *launch, script, recipe = [word for word in shlex.split(line) if "=" not in word]
    assert launch[:3] == ["accelerate", "launch", "--config_file"]
    assert Path(launch[3]).is_file() and Path(script).is_file()
    assert dry_run(capsys, recipe)["output_dir"] == f"outputs/{Path(recipe).stem}"


def test_a_file_that_is_not_there_is_answered_with_the_nearest(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_verb("run_simpo", ["training_configs/llama3-8b-instruct-simpo.yaml"]) == 2
    assert "did you mean 'training_configs/llama-3-8b-instruct-simpo.yaml'?" in capsys.readouterr().err


def test_a_file_without_a_margin_gets_the_repositorys(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("model_name_or_path: m\ndataset: d\n")
    assert run_verb("run_simpo", [str(tmp_path / "my.yaml"), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["gamma_beta_ratio"] == 0.25
    assert "'gamma_beta_ratio' is not given: 0.25 is the default of the SimPO repository" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([MISTRAL, "--betta=2"], "RecipeError: command line: 'betta' is not a key of a recipe; did you mean 'beta'?"),
        (
            [MISTRAL, "--beta"],
            "RecipeError: command line: '--beta' has no value. Write beta=VALUE, with '=' and no space.",
        ),
        (
            [MISTRAL, "--learning_rate", "fast"],
            "RecipeError: command line: 'learning_rate' must be a number, found 'fast'.",
        ),
        (["none.yaml"], "RecipeError: none.yaml: there is no such file."),
        ([], "run_simpo.py: error: a RECIPE.yaml is required, such as training_configs/mistral-7b-base-simpo.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_2(words, line, capsys):
    assert run_verb("run_simpo", words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("there", "words", "resumes"),
    [
        (["checkpoint-5", "checkpoint-10"], [], "auto"),
        ([], [], None),
        (["earlier-1"], [], None),
        (["checkpoint-5"], ["--resume_from_checkpoint=false"], False),
        (["checkpoint-5"], ["--resume_from_checkpoint=true"], True),
    ],
)
def test_a_checkpoint_in_the_output_folder_is_gone_on_from(there, words, resumes, tmp_path, capsys):
    for name in there:
        (tmp_path / name).mkdir()
    assert run_verb("run_simpo", [MISTRAL, f"--output_dir={tmp_path}", *words, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out).get("resume_from_checkpoint") == resumes
    said = f"{tmp_path} holds {there[-1] if there else ''}: the run goes on from the last checkpoint"
    assert err.count(said) == (resumes == "auto")


def test_the_script_itself_runs():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts/run_simpo.py"), MISTRAL, "--dry-run", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gamma_beta_ratio"] == 0.8


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [("deepspeed_zero3", "DEEPSPEED", 4), ("fsdp", "FSDP", 8), ("multi_gpu", "MULTI_GPU", 8)],
)
def test_the_published_launch_settings_are_read_by_accelerate(name, kind, processes):
    found = load_config_from_file(str(ROOT / f"accelerate_configs/{name}.yaml"))
    assert found.distributed_type.value == kind
    assert (found.num_processes, found.num_machines, found.mixed_precision) == (processes, 1, "bf16")
    if name == "deepspeed_zero3":
        assert found.deepspeed_config["zero_stage"] == 3
        assert found.deepspeed_config["zero3_init_flag"] and found.deepspeed_config["zero3_save_16bit_model"]
        assert found.deepspeed_config["offload_param_device"] == "none"
    if name == "fsdp":
        wanted = {
            "fsdp_sharding_strategy": "FULL_SHARD",
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_forward_prefetch": True,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_sync_module_states": True,
            "fsdp_use_orig_params": True,
        }
        assert {key: found.fsdp_config[key] for key in wanted} == wanted
