"""The on-policy chain: its reward rises, and a kill in any of its steps changes no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RULE = '''
def letters(prompts, responses):
    """The share of letters."""
    return [sum(character.isascii() and character.isalpha() for character in text) / 12 for text in responses]
'''
CHAIN = {
    "model_name_or_path": "model",
    "prompts": "prompts.jsonl",
    "rounds": 2,
    "sample": {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "chunk": 16},
    "annotate": {"function": "letter_rules:letters"},
    "pairs": {"test_share": 0.1},
    "train": {
        "objective": "simpo",
        "learning_rate": 3e-3,
        "total_batch_size": 8,
        "max_length": 64,
        "num_train_epochs": 2,
        "save_steps": 4,
        "logging_steps": 1,
        "watch": False,
    },
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on policy")
    tokenizer = build_byte_tokenizer(CHATML)
    build_model(vocab_size=len(tokenizer), num_hidden_layers=2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(48)))
    (folder / "letter_rules.py").write_text(RULE)
    return folder


def start(work, name):
    (work / f"{name}.yaml").write_text(yaml.safe_dump({**CHAIN, "output_dir": name}))
    return subprocess.Popen(
        [sys.executable, "-m", "preftune", "onpolicy", f"{name}.yaml"],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{work}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def whole(work):
    return finish(start(work, "whole"))


def test_the_reward_of_fresh_answers_rises_round_by_round(work, whole):
    rounds = json.loads((work / "whole/rounds.json").read_text())
    assert [row["round"] for row in rounds] == [0, 1, 2]
    assert rounds[0]["reward"] < rounds[1]["reward"] < rounds[2]["reward"]
    assert rounds[2]["over_start"] > 0.6 and rounds[2]["pairs"] > 30 and rounds[2]["accuracy"] is not None
    assert (work / "whole/rounds.md").read_text() in whole and "The last model: whole/round-2/model" in whole


def test_a_finished_chain_is_not_done_again(work, whole):
    started = time.monotonic()
    assert "| start |" in finish(start(work, "whole"))
    assert time.monotonic() - started < 30


def test_a_sigterm_while_it_trains_saves_and_the_same_command_goes_on(work, whole):
    process, log = start(work, "stopped"), work / "stopped/round-1/model/log.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # to the chain alone
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143, said[-3000:]
    assert "Interrupted: saved; go on with" in said and "round-1 fresh" not in said
    assert "Interrupted: in the step 'round-1 train'" in said
    finish(start(work, "stopped"))
    one, other = (load_file(work / name / "round-1/model/model.safetensors") for name in ("whole", "stopped"))
    assert all(one[key].equal(other[key]) for key in one)


def test_kill_9_in_every_step_changes_no_file(work, whole):
    """Each start is killed a moment into the step that it is at, and once in each."""
    killed = set()
    while True:
        process = start(work, "killed")
        step = next((line.split(":")[0] for line in process.stdout if line.startswith(("start ", "round-"))), None)
        while step in killed:  # this one has had its kill
            step = next((line.split(":")[0] for line in process.stdout if line.startswith(("start ", "round-"))), None)
        if step is None:
            finish(process)
            break
        time.sleep(2.5 + len(killed) % 3)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed.add(step)
    assert len(killed) >= 12, killed
    names = (
        "samples.jsonl",
        "scored.jsonl",
        "pairs/train.jsonl",
        "pairs/test.jsonl",
        "fresh.jsonl",
        "fresh-scored.jsonl",
    )
    for number in (1, 2):
        one, other = (work / name / f"round-{number}" for name in ("whole", "killed"))
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), f"round {number} {name}"
        weights, others = (load_file(folder / "model/model.safetensors") for folder in (one, other))
        assert all(weights[key].equal(others[key]) for key in weights)


def test_torchrun_shares_sampling_and_annotation_and_the_files_are_those_of_one_process(work):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{work}"}
    alone = [sys.executable, "-m", "preftune"]
    shared = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29763"]
    for launch, name in ((alone, "one"), ([*shared, "-m", "preftune"], "two")):
        sample = ["sample", "model", "prompts.jsonl", "--output", f"{name}.jsonl", "--max-tokens", "8", "--chunk", "8"]
        annotate = ["annotate", f"{name}.jsonl", "--output", f"{name}-scored.jsonl", "--chunk", "8"]
        annotate += ["--function", "letter_rules:letters"]
        for words in (sample, annotate):
            done = subprocess.run([*launch, *words], cwd=work, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert (work / "two.jsonl").read_bytes() == (work / "one.jsonl").read_bytes()
    assert (work / "two-scored.jsonl").read_bytes() == (work / "one-scored.jsonl").read_bytes()
    assert len((work / "two-scored.jsonl").read_text().splitlines()) == 48
