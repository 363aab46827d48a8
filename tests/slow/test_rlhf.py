"""The rlhf commands really train: each method on a small published model with emoji pairs; in two processes too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.recipe import load_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("a real model and data: set PREFTUNE_TEST_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def command(real, out, *more):
    return [
        *("--model_id_or_path", str(real / "models/stories260K-llama"), "--template_type", "plain"),
        *("--dataset", f"{real}/preferences/emoji/dpo_emoji_english_gpt.train.jsonl#60"),
        *("--max_length", "512", "--max_steps", "4", "--eval_steps", "2", "--logging_steps", "1"),
        *("--learning_rate", "1e-3", "--output_dir", str(out), *more),
    ]


def start_two(method, words):
    return subprocess.run(
        [sys.executable, "-m", "preftune", method, *words],
        cwd=ROOT,
        env={**os.environ, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def losses(folder, name="loss"):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("sft_type", ["lora", "full"])
@pytest.mark.parametrize("method", ["simpo", "dpo", "kto", "cpo", "orpo", "rm", "sft"])
def test_a_command_trains(method, sft_type, real, tmp_path):
    rate = "1e-2" if sft_type == "lora" else "1e-3"
    words = [rate if word == "1e-3" else word for word in command(real, tmp_path, "--sft_type", sft_type)]
    held_out = str(real / "preferences/emoji/dpo_emoji_english_gpt.eval.jsonl#20")
    assert main([method, *words, "--val_dataset", held_out, "--eval_on_start"]) == 0
    assert len(losses(tmp_path)) == 4
    found = losses(tmp_path, "eval_loss")
    assert len(found) >= 3 and found[-1] < found[0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["metrics"]["eval_loss"] > 0
    assert (tmp_path / "checkpoint-4").is_dir()
    weights = "adapter_model.safetensors" if sft_type == "lora" else "model.safetensors"
    assert (tmp_path / weights).is_file()
    assert (tmp_path / "value_head.safetensors").is_file() == (method == "rm")


def test_the_best_and_the_last_checkpoint_stay(real, tmp_path):
    more = ("--max_steps=6", "--save_steps", "1", "--learning_rate=1e-2", "--lr_scheduler_type", "constant")
    words = [word for word in command(real, tmp_path) if word not in ("--max_steps", "4", "--learning_rate", "1e-3")]
    words[words.index("--eval_steps") + 1] = "1"
    assert main(["simpo", *words, *more]) == 0
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    by_step = {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}
    best = min(by_step, key=by_step.get)
    left = {int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert left == {best, 6} or (best == 6 and left == {5, 6})


def test_a_command_and_its_dry_run_train_the_same(real, tmp_path, capsys):
    assert main(["simpo", *command(real, tmp_path / "one"), "--dry_run", "true"]) == 0
    (tmp_path / "two.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["simpo", *command(real, tmp_path / "one")]) == 0
    assert main(["train", str(tmp_path / "two.yaml"), f"output_dir={tmp_path / 'two'}"]) == 0
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_nproc_per_node_trains_in_that_many_processes_to_the_same_losses(real, tmp_path):
    more = ("--sft_type", "full", "--lr_scheduler_type", "constant")
    assert main(["simpo", *command(real, tmp_path / "one", *more)]) == 0
    done = start_two("simpo", command(real, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run sh: " in done.stderr and "--nproc_per_node 2" in done.stderr
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert load_recipe(tmp_path / "two" / "recipe.yaml").training["gradient_accumulation_steps"] == 8
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_reference_log_probs_made_ahead_are_those_of_the_run_when_weights_are_in_pieces(real, tmp_path):
    more = ("--sft_type", "full", "--lr_scheduler_type", "constant")
    assert main(["dpo", *command(real, tmp_path / "one", *more)]) == 0
    zero3 = {"zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True, "gradient_clipping": "auto"}
    zero3 |= {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    more += ("--deepspeed", json.dumps(zero3), "--precompute_reference", "true")
    done = start_two("dpo", command(real, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_a_failure_in_the_processes_is_the_exit_code(real, tmp_path):
    words = [word.replace("stories260K-llama", "no-such-model") for word in command(real, tmp_path)]
    done = start_two("simpo", words)
    assert done.returncode != 0 and "no-such-model' does not exist" in done.stderr
