"""What a PPO run is safe by: rescue checkpoints, open log windows, refused changes, updates that are not finite."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from preftune import train
from preftune.cli.main import main
from preftune.errors import CheckpointError, TrainingError
from preftune.recipe import load_recipe
from preftune.train.checkpoint import checkpoints, problem
from preftune.train.run import train_recipe
from tests.train.test_ppo import lines, models, weights, work  # noqa: F401 (fixtures)

BY_THE_CLOCK = {"save_strategy": "steps", "save_steps": 1_000_000, "rescue_minutes": 1e-9, "max_steps": 5}


class Watched(TrainerCallback):
    """Notes what lies in the run folder at the start of each step, and ends the run at one of them."""

    def __init__(self, end=None):
        self.end, self.seen = end, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append([path.name for path in checkpoints(Path(args.output_dir))])
        if state.global_step == self.end:
            raise RuntimeError("lost")


def lost(settings, step):
    """A run that is lost before its step `step + 1`."""
    with pytest.raises(RuntimeError, match="lost"):
        train_recipe(load_recipe(None, settings), callbacks=[Watched(step)])


class Stop(TrainerCallback):
    """A signal in the step after `step`."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(settings, step):
    with pytest.raises(KeyboardInterrupt):
        train_recipe(load_recipe(None, settings), callbacks=[Stop(step)])


def test_the_clock_saves_whole_checkpoints_of_which_two_are_kept(work):  # noqa: F811
    watched = Watched()
    train_recipe(load_recipe(None, {**work, **BY_THE_CLOCK, "save_only_model": True}), callbacks=[watched])
    assert watched.seen[-1] == ["rescue-4", "rescue-3"]
    assert [path.name for path in checkpoints(Path("run"))] == ["checkpoint-5"]  # and they go at the end
    lost({**work, **BY_THE_CLOCK, "output_dir": "lost", "save_only_model": True}, 3)
    newest = checkpoints(Path("lost"))[0]
    assert problem(newest) is None and (newest / "training.pt").is_file()
    facts = json.loads((newest / "manifest.json").read_text())
    assert facts["step"] == 3 and facts["processes"] == 1 and facts["settings"]["learning_rate"] == 1e-2


def test_no_clock_without_minutes(work):  # noqa: F811
    lost({**work, **BY_THE_CLOCK, "rescue_minutes": 0}, 3)
    assert checkpoints(Path("run")) == []


def test_going_on_from_a_rescue_gives_the_same_bits_and_the_same_log(work):  # noqa: F811
    """Lines at 2, 4 and 5: the line at 4 is of two steps, one before the run was lost and one after."""
    work |= {**BY_THE_CLOCK, "logging_steps": 2, "num_mini_batches": 2}
    train(None, **work)
    straight, log = weights(), lines()
    lost({**work, "output_dir": "lost"}, 3)
    train(None, **{**work, "output_dir": "lost"}, resume_from_checkpoint=True)
    assert lines("lost") == log and [line["step"] for line in log] == [2, 4, 5]
    assert all(torch.equal(value, straight[name]) for name, value in weights("lost").items())


def test_changed_settings_are_refused_before_anything_is_moved(work):  # noqa: F811
    work |= {"save_strategy": "steps", "save_steps": 1}
    train(None, **work)
    with pytest.raises(CheckpointError, match=r"learning_rate 0\.01 then, 0\.1 now"):
        train(None, **{**work, "learning_rate": 0.1}, resume_from_checkpoint="run/checkpoint-1")
    assert [path.name for path in checkpoints(Path("run"))] == ["checkpoint-2", "checkpoint-1"]
    train(None, **work, resume_from_checkpoint="run/checkpoint-1")
    assert [path.name for path in Path("run").glob("earlier-*/*")] == ["checkpoint-2"]


def test_a_signal_beside_save_only_model_saves_what_can_be_gone_on_from(work):  # noqa: F811
    stopped({**work, **BY_THE_CLOCK, "save_only_model": True}, 2)
    newest = checkpoints(Path("run"))[0]
    assert newest.name == "rescue-3" and problem(newest) is None  # save_only_model, and the run is to go on
    train(None, **{**work, **BY_THE_CLOCK, "save_only_model": True}, resume_from_checkpoint=True)


@pytest.mark.parametrize("saves", ["no", "epoch"])
def test_a_signal_in_the_step_that_ends_a_pass_saves_too(work, saves):  # noqa: F811
    """8 prompts, 3 a step: the first pass ends within step 3."""
    work |= {"total_batch_size": 3, "max_steps": 4, "save_strategy": saves}
    train(None, **work)
    log = lines()
    stopped({**work, "output_dir": "stopped"}, 2)
    assert [path.name for path in checkpoints(Path("stopped"))] == ["checkpoint-3"]
    train(None, **{**work, "output_dir": "stopped"}, resume_from_checkpoint=True)
    assert lines("stopped") == log


def test_another_reference_is_another_run(work):  # noqa: F811
    other = AutoModelForCausalLM.from_pretrained(work["model_name_or_path"])
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained("other")
    AutoTokenizer.from_pretrained(work["model_name_or_path"]).save_pretrained("other")
    work |= {"save_strategy": "steps", "save_steps": 1}
    train(None, **work)
    for key in ("reference_model_name_or_path", "model_name_or_path"):
        with pytest.raises(CheckpointError, match="is of another run: reference"):
            train(None, **{**work, key: "other"}, resume_from_checkpoint="run/checkpoint-1")


def test_the_best_is_found_in_a_folder_that_has_been_moved(work):  # noqa: F811
    """All steps have the same score, so the first is the best."""
    with open("ppo_rules.py", "a") as file:
        file.write("def same(prompts, responses):\n    return [1.0] * len(responses)\n")
    work |= {"reward_function": "ppo_rules:same", "metric_for_best_model": "objective/scores"}
    work |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    work |= {"eval_dataset": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 1}
    stopped(work, 2)
    Path("run").rename("moved")
    train(None, **{**work, "output_dir": "moved"}, resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(Path("moved"))] == ["checkpoint-4", "checkpoint-1"]


@pytest.fixture
def poison(monkeypatch):
    """Makes the policy's gradient infinite in these updates, counted from 1."""
    from preftune.train.ppo.update import Updater

    whole, count = Updater._step, [0]

    def within(updates):
        def step(self, *arguments):
            count[0] += 1
            if count[0] not in updates:
                return whole(self, *arguments)
            hook = self.parameters[0].register_hook(lambda grad: grad * float("inf"))
            try:
                return whole(self, *arguments)
            finally:
                hook.remove()

        monkeypatch.setattr(Updater, "_step", step)

    return within


def test_a_run_stops_before_the_update_and_keeps_its_rows(work, poison, capsys):  # noqa: F811
    poison({6})
    said = r"The gradient became non-finite at step 2, with finite log-probs or values"
    with pytest.raises(TrainingError, match=said) as error:
        train(None, **work)
    assert "preftune replay run/nonfinite/step-2" in str(error.value) and "\n" not in str(error.value)
    assert all(value.isfinite().all() for value in weights("run/nonfinite/step-2").values())
    assert main(["replay", "run/nonfinite/step-2"]) == 0  # the rows by themselves are finite
    shown = capsys.readouterr().out
    assert "step 2: 4 rows, 0 of them not finite" in shown and "prompts.jsonl" in shown


def test_an_update_is_left_out_and_leaves_no_trace_in_the_log(work, poison, caplog):  # noqa: F811
    """Of four updates a rollout the second is left out in the first rollout, and all in the second."""
    poison({2, 5, 6, 7, 8})
    work |= {"max_steps": 3}
    train(None, **work, on_nonfinite="skip")
    assert "The step is left out (1 of at most 10)" in caplog.text
    assert [line["step"] for line in lines()] == [1, 2, 3]
    assert "loss" not in lines()[1] and lines()[1]["objective/scores"] > 0
    numbers = [value for line in lines() for value in line.values()]
    assert torch.tensor(numbers).isfinite().all()
    assert all(value.isfinite().all() for value in weights().values())


def test_what_was_left_out_is_counted_over_a_resume(work, poison):  # noqa: F811
    poison(set(range(1, 99)))
    work |= {**BY_THE_CLOCK, "on_nonfinite": "skip"}
    lost(work, 2)
    with pytest.raises(TrainingError, match="It is the 11th such step"):
        train(None, **work, resume_from_checkpoint=True)


def test_a_row_that_is_not_finite_is_named(work, monkeypatch):  # noqa: F811
    from preftune.train.ppo import update

    whole = update.token_values

    def values(*arguments, **more):
        found = whole(*arguments, **more)
        return torch.cat([found[:1] * float("nan"), found[1:]])

    monkeypatch.setattr(update, "token_values", values)
    with pytest.raises(TrainingError, match=r"Log-probs or values became non-finite at step 1, in \d groups: prompts"):
        train(None, **work)
