"""Real launches: the demo with its figures, the command line, an interrupt, a kill, two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.train.checkpoint import checkpoints, problem
from preftune.train.record import read_log

pytestmark = pytest.mark.slow
PREFTUNE = [sys.executable, "-m", "preftune"]


def run(arguments, cwd, **changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One demo run, on all cores, in a folder with a space."""
    folder = tmp_path_factory.mktemp("demo run")
    done = run([*PREFTUNE, "demo"], folder, OMP_NUM_THREADS=str(os.cpu_count()))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


class TestDemo:
    def test_the_figures(self, demo):
        """One seed: somewhat less is asked than of the mean of three."""
        summary = json.loads((demo[0] / "runs/demo/summary.json").read_text())
        figures = summary["heldout"]
        assert 0.3 < figures["zh_share_before"] < 0.7
        assert figures["zh_share_after"] >= 0.93
        assert figures["zh_share_sampled_after"] >= 0.93
        assert figures["correct_after"] >= 0.95
        assert figures["repetition_after"] <= figures["repetition_before"]
        print(summary["seconds_total"], figures)

    def test_what_it_leaves(self, demo):
        folder = demo[0] / "runs/demo"
        for name in ("recipe.yaml", "log.jsonl", "summary.json", "samples.md", "README.md", "model.safetensors"):
            assert (folder / name).stat().st_size > 0, name
        assert {path.name for path in (folder / "plots").glob("*.png")} >= {
            "loss.png",
            "rewards.png",
            "margins.png",
            "lengths.png",
        }
        samples = (folder / "samples.md").read_text()
        assert "你是谁？" in samples
        assert "西湖醋鱼怎么做？" in samples
        assert "preftune chat runs/demo" in demo[1]

    def test_the_model_loads_anywhere_and_answers_in_chinese(self, demo):
        folder = demo[0] / "runs/demo"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "Who are you?"}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0, ids["input_ids"].shape[1] :])
        assert any("\u4e00" <= character <= "\u9fff" for character in answer)

    def test_chat_answers_lines_from_a_pipe(self, demo):
        done = subprocess.run(
            [*PREFTUNE, "chat", "runs/demo"],
            cwd=demo[0],
            input="What is the capital of France?\n",
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "巴黎" in done.stdout

    def test_the_recipe_beside_it_runs_on_its_model(self, demo):
        recipe = Path(__file__).parents[2] / "training_configs/demo-simpo.yaml"
        done = run([*PREFTUNE, "train", str(recipe), "max_steps=3", "--json"], demo[0])
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["steps"] == 3

    def test_the_resolved_recipe_runs_again_to_the_same_log(self, demo):
        folder = demo[0] / "runs/demo"
        values = ["output_dir=runs/again", "max_steps=6", "logging_steps=2", "lr_scheduler_type=constant"]
        for name in ("one", "two"):
            done = run([*PREFTUNE, "train", str(folder / "recipe.yaml"), *values, f"output_dir=runs/{name}"], demo[0])
            assert done.returncode == 0, done.stderr[-2000:]
        one, two = (read_log(demo[0] / "runs" / name / "log.jsonl") for name in ("one", "two"))
        assert [record["loss"] for record in one if "loss" in record] == [r["loss"] for r in two if "loss" in r]
        assert len(one) >= 3


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small model, pairs, and a recipe that takes long enough to be interrupted."""
    from preftune.demo.build import write_data
    from preftune.demo.corpus import corpus_texts
    from preftune.demo.model import build_model
    from preftune.demo.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("work")
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed=0).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_data(folder / "data", seed=0)
    recipe = {
        "model_name_or_path": "model",
        "dataset": "data/pairs.train.jsonl",
        "columns": {"question": "prompt", "answer_zh": "chosen", "answer_en": "rejected"},
        "total_batch_size": 16,
        "max_steps": 30,
        "save_steps": 5,
        "logging_steps": 1,
        "learning_rate": 1.0e-3,
        "save_total_limit": 10,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run([*PREFTUNE, "train", "recipe.yaml", "output_dir=whole"], folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def start_and_wait(work, output, step):
    """Start the run and return once its log has reached `step`."""
    process = subprocess.Popen(
        [*PREFTUNE, "train", "recipe.yaml", f"output_dir={output}"],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        records = read_log(work / output / "log.jsonl")
        if records and records[-1]["step"] >= step:
            return process
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.1)
    raise AssertionError("the run did not start")


def resume_and_compare(work, output):
    done = run([*PREFTUNE, "train", "recipe.yaml", f"output_dir={output}", "resume_from_checkpoint=true"], work)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, resumed = weights(work / "whole"), weights(work / output)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [record["step"] for record in read_log(work / output / "log.jsonl") if "loss" in record]
    assert steps == list(range(1, 31))


def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(work):
    process = start_and_wait(work, "interrupted", 7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-2000:]
    assert "resume_from_checkpoint=true" in errors
    assert problem(checkpoints(work / "interrupted")[0]) is None
    resume_and_compare(work, "interrupted")


def test_a_kill_loses_no_more_than_the_last_interval(work):
    process = start_and_wait(work, "killed", 8)
    process.kill()
    process.communicate()
    assert checkpoints(work / "killed")
    resume_and_compare(work, "killed")


def test_two_processes_end_where_one_ends(work):
    """DDP over gloo: the same losses and the same weights to 1e-5."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29731"]
    done = run([*launch, "-m", "preftune", "train", "recipe.yaml", "output_dir=two"], work)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [record["loss"] for record in read_log(work / name / "log.jsonl") if "loss" in record]
        for name in ("whole", "two")
    )
    assert two == pytest.approx(one, rel=1e-4)
    whole, both = weights(work / "whole"), weights(work / "two")
    assert max(((whole[n] - both[n]).norm() / whole[n].norm()).item() for n in whole) < 1e-4


def test_two_processes_train_bfloat16_weights(work):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29732"]
    values = ["output_dir=two-bf16", "torch_dtype=bfloat16", "max_steps=4", "save_strategy=no"]
    done = run([*launch, "-m", "preftune", "train", "recipe.yaml", *values], work)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [record["loss"] for record in read_log(work / "two-bf16" / "log.jsonl") if "loss" in record]
    assert losses[-1] < losses[0]
