"""Trackers that are absent, misspelt or out of reach."""

import pytest
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler

from preftune.errors import RecipeError
from preftune.train import trackers
from preftune.train.trackers import guard, usable_trackers


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("none", []),
        (["none"], []),
        (None, []),
        ("all", ["tensorboard"]),
        (["all"], ["tensorboard"]),
        ("tensorboard", ["tensorboard"]),
        (["wandb", "tensorboard"], ["tensorboard"]),
    ],
)
def test_trackers_that_are_installed_are_used(installed, asked, used):
    assert usable_trackers(asked) == used


def test_one_that_is_not_installed_is_one_line_that_says_what_is_used(installed, caplog):
    assert usable_trackers(["wandb"]) == []
    (record,) = caplog.records
    assert record.message == "report_to: wandb is not installed; the run goes on with log.jsonl and plots/ alone."


def test_a_tracker_that_does_not_exist_is_an_error_with_the_nearest_name(installed):
    with pytest.raises(RecipeError, match=r"'report_to' names 'wand', which is no tracker; did you mean 'wandb'\?"):
        usable_trackers("wand")


class OfflineCallback(TrainerCallback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.calls.append("begin")
        raise ConnectionError("no route\nto host")

    def on_log(self, args, state, control, **kwargs):
        self.calls.append("log")


class WorkingCallback(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        control.should_save = True
        return control


class InterruptedCallback(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def handler(*callbacks):
    guard(callbacks)
    return CallbackHandler(list(callbacks), None, None, None, None)


def test_one_out_of_reach_is_one_line_and_is_not_called_again(caplog):
    offline = OfflineCallback()
    events = handler(offline)
    control = TrainerControl()
    events.on_train_begin(None, None, control)
    events.on_log(None, None, control, {})
    assert offline.calls == ["begin"]
    (record,) = [record for record in caplog.records if record.name.startswith("preftune")]
    assert record.message.startswith("Offline cannot be used (ConnectionError: no route to host); the run goes on with")


def test_one_that_works_is_left_alone():
    assert handler(WorkingCallback()).on_log(None, None, TrainerControl(), {}).should_save


def test_an_interrupt_goes_through():
    with pytest.raises(KeyboardInterrupt):
        handler(InterruptedCallback()).on_log(None, None, TrainerControl(), {})
