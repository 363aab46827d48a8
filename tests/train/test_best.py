"""The best checkpoint: chosen by any metric of an evaluation, kept beside the last one, loaded and said."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from preftune.errors import RecipeError
from preftune.train.best import lower_is_better, say_best
from preftune.train.checkpoint import checkpoints
from tests.small import build_group
from tests.train.test_trainer import GROUPS, build_trainer


def best_of(folder, metric, **changes):
    how = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 2, **changes}
    return build_trainer(folder, held_out=GROUPS[:5], load_best_model_at_end=True, metric_for_best_model=metric, **how)


@pytest.mark.parametrize(
    ("metric", "pick"), [("loss", min), ("nll", min), ("eval_rewards/margins", max), ("logps/chosen", max)]
)
def test_the_final_model_is_the_best_of_any_metric_and_best_and_last_are_kept(tmp_path, caplog, metric, pick):
    caplog.set_level("INFO")
    trainer = best_of(tmp_path, metric, learning_rate=0.1)
    trainer.train()
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    by_step = {record["step"]: record[key] for record in trainer.state.log_history if key in record}
    best = pick(by_step, key=by_step.get)
    assert say_best(trainer) == {"step": best, "metric": key, "value": by_step[best]}
    assert f"The final model is that of checkpoint-{best}" in caplog.text
    assert {path.name for path in checkpoints(tmp_path)} >= {f"checkpoint-{best}", "checkpoint-10"}
    assert len(checkpoints(tmp_path)) == 2
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())


class StopAt(TrainerCallback):
    """As an interrupt does: ends the run after a step, with a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


FIRST_IS_BEST = {
    "metric_for_best_model": "lengths/chosen",  # the same at every evaluation
    "held_out": GROUPS[:5],
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
}


def names(folder):
    return [path.name for path in checkpoints(folder)]


def test_a_run_that_is_to_go_on_keeps_its_newest_checkpoint_beside_the_best(tmp_path):
    how = {**FIRST_IS_BEST, "save_total_limit": 1, "max_steps": 7}
    stopped, again = build_trainer(tmp_path, **how), build_trainer(tmp_path, **how)
    stopped.add_callback(StopAt(5))
    stopped.train()
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-1"]
    assert stopped.args.save_total_limit == 1
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert names(tmp_path) == ["checkpoint-1"]  # done: the limit holds


def test_what_an_interrupt_asks_for_is_saved_beside_the_best_alone(tmp_path):
    trainer = build_trainer(tmp_path, **FIRST_IS_BEST, save_strategy="best")
    trainer.add_callback(StopAt(5))
    trainer.train()
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-1"]


def test_what_the_clock_asks_for_is_saved_beside_the_best_alone(tmp_path):
    loss = {"objective": "simpo", "rescue_minutes": 1e-9}
    build_trainer(tmp_path, loss=loss, **FIRST_IS_BEST, save_strategy="best", max_steps=4).train()
    assert names(tmp_path) == ["rescue-3", "rescue-2", "checkpoint-1"]


def test_the_best_is_found_in_a_folder_that_has_been_moved(tmp_path):
    how = {**FIRST_IS_BEST, "save_total_limit": 2, "load_best_model_at_end": True, "max_steps": 7}
    stopped = build_trainer(tmp_path / "run", **how)
    stopped.add_callback(StopAt(5))
    stopped.train()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = build_trainer(tmp_path / "moved", **how)
    again.train(resume_from_checkpoint=str(tmp_path / "moved/checkpoint-5"))
    assert names(tmp_path / "moved") == ["checkpoint-7", "checkpoint-1"]
    assert say_best(again)["step"] == 1


def test_the_best_is_known_again_after_a_resume(tmp_path):
    """Steps 8 and 10 are worse than 6: the path in the checkpoint is that of a folder that is there."""
    whole = best_of(tmp_path, "loss", save_total_limit=5)
    whole.train()
    state = json.loads((tmp_path / "checkpoint-8/trainer_state.json").read_text())
    assert ".incomplete" not in state["best_model_checkpoint"]
    again = best_of(tmp_path, "loss", save_total_limit=5)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert say_best(again) == say_best(whole)
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path):
    trainer = best_of(tmp_path, "rewards/margin")
    with pytest.raises(RecipeError, match=r"rewards/margin is none of .*; did you mean 'rewards/margins'\?"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("held_out", "metric", "near"),
    [
        (GROUPS[:5], "foo_loss", "loss"),
        ({"one": GROUPS[:5], "two": GROUPS[5:9]}, "loss", "one_loss, .*two_loss"),
        ({"one": GROUPS[:5], "two": GROUPS[5:9]}, "eval_three_loss", "one_loss, .*two_loss"),
    ],
    ids=["one set", "several sets", "no such set"],
)
def test_a_loss_that_no_evaluation_has_is_refused_too(tmp_path, held_out, metric, near):
    how = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "metric_for_best_model": metric}
    trainer = build_trainer(tmp_path, held_out=held_out, **how)
    with pytest.raises(RecipeError, match=f"{metric.removeprefix('eval_')} is none of the metrics .*{near}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_loss_of_one_of_several_sets_chooses(tmp_path):
    held_out = {"one": GROUPS[:5], "two": GROUPS[5:9]}
    how = {
        "eval_strategy": "steps",
        "eval_steps": 5,
        "load_best_model_at_end": True,
        "metric_for_best_model": "two_loss",
    }
    trainer = build_trainer(tmp_path, held_out=held_out, **how)
    trainer.train()
    losses = [record["eval_two_loss"] for record in trainer.state.log_history if "eval_two_loss" in record]
    assert len(losses) == 2 and trainer.state.best_metric == min(losses)


def test_a_class_that_the_first_rows_do_not_have_is_no_missing_metric(tmp_path):
    groups = [build_group(4, 5, row=row) for row in range(40)]
    desirable = [type(group)(group.prompt_ids, group.response_ids, group.origin, (1.0,)) for group in groups]
    others = [type(group)(group.prompt_ids, group.response_ids, group.origin, (0.0,)) for group in groups]
    how = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 1, "load_best_model_at_end": True}
    trainer = build_trainer(
        tmp_path,
        groups=desirable + others,
        held_out=desirable[:20] + others[:20],
        loss={"objective": "kto"},
        metric_for_best_model="rewards/margins",
        **how,
    )
    trainer.train()
    assert trainer.state.best_metric is not None


def test_a_best_that_was_not_saved_is_said(tmp_path, caplog):
    """Evaluated at 1, 2, ... 10 and saved at 5 and 10: the loss of an exploding run is best at step 1."""
    how = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "warmup_steps": 0}
    trainer = best_of(tmp_path, "loss", eval_steps=1, save_steps=5, **how)
    trainer.train()
    by_step = {record["step"]: record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record}
    best = min(by_step, key=by_step.get)
    assert best not in (5, 10)
    assert say_best(trainer) is None
    assert f"was that of step {best}, of which there is no checkpoint" in caplog.text


@pytest.mark.parametrize(("metric", "lower"), [("loss", True), ("eval_nll", True), ("rewards/accuracies", False)])
def test_the_direction_of_a_metric(metric, lower):
    assert lower_is_better(metric) is lower
