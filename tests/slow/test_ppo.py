"""PPO reaches a rule's reward, and kl_coef holds it; two processes; the rlhf command on a real small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preftune import train
from preftune.cli.main import main
from preftune.train.record import read_log
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RULES = '''
def letters(prompts, responses):
    """The share of eight characters that are letters from a to z: a tenth of a random byte model's."""
    return [sum("a" <= character <= "z" for character in text) / 8 for text in responses]
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("letter_rules", None)
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    Path("letter_rules.py").write_text(RULES)
    tokenizer = build_byte_tokenizer(CHATML)
    build_model(vocab_size=len(tokenizer), num_hidden_layers=2).save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(16)))
    return {
        "model_name_or_path": "model",
        "dataset": "prompts.jsonl",
        "objective": "ppo",
        "reward_function": "letter_rules:letters",
        "response_length": 8,
        "max_length": 64,
        "temperature": 1.0,
        "total_batch_size": 32,
        "num_mini_batches": 2,
        "max_steps": 24,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }


def figures(folder, name):
    return [line[name] for line in read_log(Path(folder) / "log.jsonl") if name in line]


def test_a_rule_is_learnt_and_kl_coef_keeps_the_policy_close(work):
    runs = {"low": 0.02, "middle": 0.1, "high": 1.0}
    for name, kl_coef in runs.items():
        train(None, **work, kl_coef=kl_coef, output_dir=name)
    scores = {name: sum(figures(name, "objective/scores")[-3:]) / 3 for name in runs}
    kl = {name: sum(figures(name, "objective/kl")[-3:]) / 3 for name in runs}
    assert figures("low", "objective/scores")[0] < 0.2 and scores["low"] > 0.7
    assert scores["low"] > scores["middle"] > scores["high"]
    assert kl["low"] > kl["middle"] > kl["high"] and kl["high"] < 1.5
    assert max(figures("low", "policy/approxkl_avg")) < 0.2


def test_an_adapter_learns_too(work):
    """Embeddings and head stay random, so there is less to be had."""
    train(None, **{**work, "learning_rate": 5e-2, "kl_coef": 0.02}, use_peft=True, lora_r=8, output_dir="lora")
    scores = figures("lora", "objective/scores")
    assert sum(scores[-8:]) > 1.15 * sum(scores[:8])


def test_memory_that_ends_in_one_of_two_processes_makes_both_do_the_update_again(work):
    keys = {"total_batch_size": 8, "max_steps": 2, "save_strategy": "steps", "save_steps": 2, "micro_batch_tokens": 200}
    Path("keys.json").write_text(json.dumps({**work, **keys}))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29763"]
        + [str(ROOT / "tests/slow/ppo_memory_ranks.py"), "keys.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if "its update is done again with" in line]
    assert len(said) == 1 and "(process 1: OutOfMemoryError: Tried to allocate" in said[0]
    found, wanted = (load_file(f"{folder}/model.safetensors") for folder in ("short", "small"))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert figures("short", "grad_norm") == figures("small", "grad_norm")


def test_two_processes_train_one_policy_and_go_on_where_they_stopped(work):
    keys = {
        **work,
        "total_batch_size": 8,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "output_dir": "two",
    }
    words = [f"{key}={value}" for key, value in keys.items()]

    def run(*more):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29747"]
            + ["-m", "preftune", "train", *words, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run()
    first = read_log(Path("two/log.jsonl"))
    assert json.loads(Path("two/summary.json").read_text())["processes"] == 2
    assert [line["episode"] for line in first] == [16, 32, 48, 64]
    assert first[0]["val/ratio_var"] > 0 and first[0]["objective/kl"] == 0.0
    assert {path.name for path in Path("two/checkpoint-2").glob("rng_state_*")} == {"rng_state_0.pt", "rng_state_1.pt"}
    run("resume_from_checkpoint=two/checkpoint-2")
    again = read_log(Path("two/log.jsonl"))
    for one, other in zip(first, again, strict=True):
        assert other["objective/scores"] == one["objective/scores"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_the_rlhf_command_trains_by_a_reward_model_of_the_rm_command(sft_type, tmp_path, monkeypatch):
    data = os.environ.get("PREFTUNE_TEST_DATA")
    if not data:
        pytest.skip("a real model and data: set PREFTUNE_TEST_DATA to the folder that holds them")
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    model = [
        *("--model_id_or_path", f"{data}/models/stories260K-llama", "--template_type", "plain", "--sft_type", sft_type),
        *("--dataset", f"{data}/preferences/emoji/dpo_emoji_english_gpt.train.jsonl#60", "--max_length", "512"),
        *("--max_steps", "3", "--eval_steps", "2", "--logging_steps", "1"),
    ]
    reward = str(tmp_path / "reward")
    assert main(["rm", *model, "--learning_rate", "1e-3", "--output_dir", reward]) == 0
    more = ("--reward_model_id_or_path", reward, "--response_length", "24", "--missing_eos_penalty", "1.0")
    out = tmp_path / "ppo"
    assert main(["rlhf", "--rlhf_type", "ppo", *model, *more, "--output_dir", str(out)]) == 0
    assert len(figures(out, "objective/scores")) == 3 and figures(out, "eval_objective/scores")
    assert figures(out, "objective/kl")[0] == pytest.approx(0.0, abs=1e-4)
    weights = "adapter_model.safetensors" if sft_type == "lora" else "model.safetensors"
    assert (out / weights).is_file() and (out / "checkpoint-3").is_dir() and (out / "samples/step-3.md").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["episodes"] == 48
