"""What a run is safe by, in one process: open windows, rescue checkpoints, what is set aside. Faults: tests/faults."""

from __future__ import annotations

import json

import pytest
import torch

from preftune.errors import CheckpointError, TrainingError
from preftune.train.checkpoint import checkpoints, is_unfinished, problem, resolve_resume, set_aside, step_of
from preftune.train.identity import changed_settings
from preftune.train.trouble import said_plainly
from tests.train.test_trainer import GROUPS, build_trainer

OF_THE_CLOCK = ("tokens_per_second",)


def logged(trainer):
    history = [record for record in trainer.state.log_history if "loss" in record]
    return [{key: value for key, value in record.items() if key not in OF_THE_CLOCK} for record in history]


@pytest.mark.parametrize("loss", [{"objective": "simpo", "sft_weight": 0.3}, {"objective": "bco_pair"}], ids=str)
def test_a_log_line_after_a_resume_has_the_steps_before_it(tmp_path, loss):
    """Lines at 4 and 8, a checkpoint at 5: the line at 8 is of steps 5 to 8 in both runs."""
    how = {"logging_steps": 4, "max_steps": 8, "loss": loss}
    whole, again = build_trainer(tmp_path / "whole", **how), build_trainer(tmp_path / "again", **how)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert [record["step"] for record in logged(whole)] == [4, 8]
    assert logged(again) == logged(whole)


def test_a_run_that_had_taken_its_last_step_takes_no_other(tmp_path):
    """A kill while the final model was written: the Trainer alone would train on, and log it."""
    how = {"max_steps": 7, "lr_scheduler_type": "constant", "logging_steps": 4, "save_steps": 7}
    whole, again = build_trainer(tmp_path / "whole", **how), build_trainer(tmp_path / "again", **how)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-7"))
    assert again.state.global_step == 7
    assert logged(again) == logged(whole)
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_how_often_a_resumed_run_logs_and_saves_is_what_it_is_told(tmp_path):
    build_trainer(tmp_path, save_steps=2, logging_steps=4, max_steps=4).train()
    again = build_trainer(tmp_path, save_steps=1, logging_steps=1, max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [record["step"] for record in logged(again)] == [3, 4]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (4, 3, 2)]


def rescued(folder, **changes):
    return build_trainer(folder, loss={"objective": "simpo", "rescue_minutes": 1e-9}, **changes)


def test_the_clock_saves_whole_checkpoints_of_which_two_are_kept(tmp_path):
    trainer = rescued(tmp_path, save_steps=1000, save_only_model=True, max_steps=6)
    trainer.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "rescue-5", "rescue-4"]
    assert all(problem(path) is None for path in checkpoints(tmp_path))
    assert (tmp_path / "rescue-5/optimizer.pt").exists()
    assert not (tmp_path / "checkpoint-6/optimizer.pt").exists()


def test_an_ordinary_checkpoint_makes_older_rescues_superfluous(tmp_path):
    rescued(tmp_path, save_steps=4, max_steps=6, save_total_limit=5).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-4"]


def test_a_rescue_leaves_the_best_checkpoint_alone(tmp_path):
    trainer = rescued(
        tmp_path,
        held_out=GROUPS[:5],
        save_steps=3,
        max_steps=7,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        greater_is_better=False,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is None or best.endswith(("checkpoint-3", "checkpoint-6", "checkpoint-7"))
    assert not any(path.name.startswith("rescue") for path in checkpoints(tmp_path))


def test_a_rescue_waits_for_what_belongs_to_the_end_of_an_epoch(tmp_path):
    """Steps 5 and 10 end epochs; the evaluation there is in the log of the checkpoint."""
    trainer = rescued(tmp_path, save_strategy="no", held_out=GROUPS[:5], eval_strategy="epoch")
    trainer.train()
    newest = checkpoints(tmp_path)[0]
    assert newest.name == "rescue-9"  # the run ends at 10
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    assert [record["step"] for record in history if "eval_loss" in record] == [5]


def test_no_clock_without_minutes(tmp_path):
    build_trainer(tmp_path, loss={"objective": "simpo", "rescue_minutes": 0}, save_strategy="no").train()
    assert checkpoints(tmp_path) == []


def test_resuming_from_a_rescue_is_bit_for_bit(tmp_path):
    whole = rescued(tmp_path / "whole", save_strategy="no")
    whole.train()
    again = rescued(tmp_path / "again", save_strategy="no")
    again.train(resume_from_checkpoint=str(resolve_resume(True, tmp_path / "whole")))
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_manifest_says_who_wrote_it(tmp_path):
    build_trainer(tmp_path).train()
    facts = json.loads((tmp_path / "checkpoint-5/manifest.json").read_text())
    assert facts["step"] == 5
    assert facts["processes"] == 1
    assert set(facts["versions"]) == {"python", "preftune", "torch", "transformers", "accelerate"}


def test_what_lies_beyond_the_step_is_set_aside(tmp_path):
    for name in ("checkpoint-2", "checkpoint-4", "rescue-5"):
        (tmp_path / name).mkdir()
    (tmp_path / "log.jsonl").write_text("")
    assert set_aside(tmp_path, beyond=5) is None
    place = set_aside(tmp_path, beyond=2)
    assert sorted(path.name for path in place.iterdir()) == ["checkpoint-4", "rescue-5"]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert sorted(path.name for path in set_aside(tmp_path).iterdir()) == ["checkpoint-2", "log.jsonl"]


def test_a_run_is_unfinished_while_it_has_a_whole_checkpoint_and_no_summary(tmp_path):
    assert not is_unfinished(tmp_path / "absent")
    build_trainer(tmp_path).train()
    assert is_unfinished(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert not is_unfinished(tmp_path)


def test_the_step_of_a_checkpoint_with_another_name(tmp_path):
    build_trainer(tmp_path).train()
    (tmp_path / "checkpoint-5").rename(tmp_path / "kept")
    assert step_of(tmp_path / "kept") == 5
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        step_of(tmp_path)


def test_settings_are_compared_where_both_know_them():
    assert changed_settings({"beta": 2.0, "gone": 1}, {"beta": 2.5, "new": 3}) == ["beta 2.0 then, 2.5 now"]
    assert changed_settings({}, {"beta": 2.5}) == []


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OSError(28, "No space left on device", "run/x"), r"cannot write .*No space left.*There is no checkpoint yet"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "A process that prepares steps"),
        (torch.OutOfMemoryError("CUDA out of memory"), "Out of memory outside of the micro-batches"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_comes_from_outside_is_one_line(tmp_path, cause, said):
    with pytest.raises(TrainingError, match=said) as told, said_plainly(tmp_path):
        raise cause
    assert "\n" not in str(told.value)


def test_a_mistake_of_ours_is_not_hidden(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), said_plainly(tmp_path):
        raise RuntimeError("shapes differ")
