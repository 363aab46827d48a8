"""Steps of the chain: done once, by the same command and recipe; and what a signal does to the one in hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from preftune.errors import CheckpointError, TrainingError
from preftune.onpolicy.steps import Record, Step

SAVES = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.5)  # longer than Ctrl-C leaves a child of `subprocess.run`
    print(f"saved {os.environ['PREFTUNE_STEP']}", flush=True)
    os._exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
os._exit(3)
"""
CHAIN = """
import sys
from pathlib import Path
from preftune.cli import main
from preftune.onpolicy import steps
steps._launch = lambda words, processes: [sys.executable, *words]
class verb:
    def main(words): steps.Record(Path(sys.argv[1])).do(steps.Step("round-1 train", ("-c", sys.argv[2])), 1)
main.importlib.import_module = lambda name: verb
sys.exit(main.run_verb("onpolicy", []))
"""


@pytest.fixture
def record(tmp_path):
    return lambda: Record(tmp_path / "steps.json")


def test_a_step_that_is_done_is_not_done_again_and_another_command_is_refused(record, tmp_path):
    record().do(Step("round-1 pairs", ("presets",)), 1)
    seconds = json.loads((tmp_path / "steps.json").read_text())["round-1 pairs"]["seconds"]
    record().do(Step("round-1 pairs", ("presets",)), 1)
    assert json.loads((tmp_path / "steps.json").read_text())["round-1 pairs"]["seconds"] == seconds
    with pytest.raises(CheckpointError, match="was done by `preftune presets`, and would be `preftune objectives` now"):
        record().do(Step("round-1 pairs", ("objectives",)), 1)


def test_another_recipe_is_refused_with_the_difference_and_the_file_stays(record, tmp_path):
    file = tmp_path / "recipe.yaml"

    def train(**settings):
        return Step("round-1 train", ("presets", str(file)), recipe=yaml.safe_dump(settings))

    step = train(objective="simpo", beta=2.0)
    with pytest.raises(TrainingError):  # `presets` takes no file; but the file is there
        record().do(step, 1)
    assert file.read_text() == step.recipe
    record()._add(step, 1.0)
    record().do(step, 1)
    with pytest.raises(CheckpointError, match=r"was done by another recipe: beta was 2\.0 and is 3\.0; gamma was None"):
        record().do(train(objective="simpo", beta=3.0, gamma=1), 1)
    assert file.read_text() == step.recipe


def test_a_step_that_fails_names_itself(record):
    with pytest.raises(TrainingError, match=r"'round-1 train' ended with exit code 2.*preftune train no-such.yaml"):
        record().do(Step("round-1 train", ("train", "no-such.yaml")), 1)


@pytest.mark.parametrize("text", ["{", "[]", '{"round-1 train": 3}'])
def test_a_damaged_record_is_one_line(record, tmp_path, text):
    (tmp_path / "steps.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"steps.json: is damaged. Delete it"):
        record()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("group", [False, True], ids=["chain", "group"])
def test_a_signal_lets_the_step_save_and_then_ends_the_chain(tmp_path, number, code, group):
    chain = subprocess.Popen(
        [sys.executable, "-c", CHAIN, tmp_path / "steps.json", SAVES],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of the background ignores Ctrl-C
    )  # fmt: skip
    assert chain.stdout.readline() == "ready\n"
    (os.killpg if group else os.kill)(chain.pid, number)
    out, said = chain.communicate(timeout=30)
    assert out == "saved 1\n" and chain.returncode == code
    assert said.endswith("Interrupted: in the step 'round-1 train'; the same command goes on from there.\n")
    assert not (tmp_path / "steps.json").exists()
