"""Three published recipe files, launched as published, with only model and data pointed at what is on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.train.record import read_log

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real():
    """The folder with a small real model and real pairs."""
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("a real model and pairs: set PREFTUNE_TEST_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture(scope="module")
def pairs(real, tmp_path_factory):
    """A folder with a train and a test split of the same set, as a user lays out data of their own."""
    folder = tmp_path_factory.mktemp("pairs")
    source = real / "preferences/llamafactory"
    for split, name in (("train", "dpo_en_demo.train.jsonl"), ("test", "dpo_en_demo.eval.jsonl")):
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:64]) + "\n", encoding="utf-8")
    return folder


def launch(recipe, real, data, folder, *more, launcher=("--num_processes", "1", "--cpu")):
    """`accelerate launch ... scripts/run_simpo.py FILE --model_name_or_path=... --dataset=...`, on one CPU process."""
    model = real / "models/stories260K-llama"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher]
    command += [str(ROOT / "scripts/run_simpo.py"), str(ROOT / f"training_configs/{recipe}.yaml")]
    command += [f"--model_name_or_path={model}", f"--dataset={data}", f"--output_dir={folder}", *more]
    names = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "info", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def check_run(folder, done, steps, markers):
    """It trained, said so, and left a model with rows for the markers of its template; save_steps is a million."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == steps
    assert all(record["loss"] == record["loss"] for record in read_log(folder / "log.jsonl") if "loss" in record)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["save_steps"] == 1000000
    embedded = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().num_embeddings
    assert embedded == len(AutoTokenizer.from_pretrained(folder)) == 512 + markers
    assert done.stderr.count("wandb is not installed; the run goes on with log.jsonl") == 1
    assert "Traceback" not in done.stderr
    return summary


def test_mistral_base_trains_and_evaluates_at_the_end(real, pairs, tmp_path):
    done = launch("mistral-7b-base-simpo", real, pairs, tmp_path / "run", "--max_steps=2", "max_length=512",
                  "--max_prompt_length", "256")  # fmt: skip
    summary = check_run(tmp_path / "run", done, steps=2, markers=2)  # chatml's, as the model has no template
    assert summary["objective"] == "simpo: -log σ(2·(A_w - A_l - 0.8))"
    assert "eval_loss" in summary["metrics"]
    assert done.stderr.count("attn_implementation flash_attention_2: there is no CUDA device") == 1


def test_llama_3_instruct_v2_trains_with_the_published_ids(real, pairs, tmp_path):
    exact = ["tokenization=princeton", "mixer_order=head", "chat_template=llama3"]
    short = ["--max_steps=1", "max_length=512", "max_prompt_length=256", "on_bad_row=skip", "do_eval=false"]
    done = launch("llama-3-8b-instruct-simpo-v2", real, pairs, tmp_path / "run", *exact, *short, "eval_strategy=no")
    assert check_run(tmp_path / "run", done, 1, markers=3)["objective"] == "simpo: -log σ(10·(A_w - A_l - 0.3))"


def test_gemma_trains_with_eager_attention_on_one_file_of_pairs(real, pairs, tmp_path):
    short = ["--max_steps=1", "max_length=512", "max_prompt_length=256"]
    done = launch("gemma-2-9b-it-simpo", real, pairs / "train.jsonl", tmp_path / "run", *short)
    assert check_run(tmp_path / "run", done, 1, markers=2)["objective"] == "simpo: -log σ(10·(A_w - A_l - 0.5))"
    assert "the data has no test split, so nothing is evaluated" in done.stderr
    assert "attn_implementation" not in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_mistral_base_trains_under_the_published_launcher_file(real, pairs, tmp_path, processes):
    if find_spec("deepspeed") is None:
        pytest.skip("needs the extra 'deepspeed'")
    file = ("--config_file", str(ROOT / "accelerate_configs/deepspeed_zero3.yaml"), "--main_process_port", "29747")
    short = ["--max_steps=2", "max_length=512", "--max_prompt_length", "256", "total_batch_size=16"]
    done = launch("mistral-7b-base-simpo", real, pairs, tmp_path / "run", *short,
                  launcher=(*file, "--num_processes", str(processes)))  # fmt: skip
    assert check_run(tmp_path / "run", done, steps=2, markers=2)["processes"] == processes
    assert processes == 1 or "Engine: ZeRO-3 over 2 processes" in done.stderr
