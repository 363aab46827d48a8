"""The collapse watch: figures by hand, signs by hand, and runs that are watched, stopped, rolled back and resumed."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.errors import RecipeError, TrainingError
from preftune.train.checkpoint import checkpoints
from preftune.train.record import read_log
from preftune.train.watch import callback, look, watch_collapse
from preftune.train.watch.measures import Answered, Measures, distinct_share, measure, repeats, token_f1
from preftune.train.watch.rows import PROMPT_TOKENS, WatchedRow, choose_rows
from preftune.train.watch.verdict import Settings, advice, signs_of
from preftune.types import Layout, Origin
from tests.small import build_group, build_groups, build_model
from tests.train.test_survival import logged
from tests.train.test_trainer import GROUPS, build_trainer

WELL = Measures(repetition=0.0, distinct=0.8, length=12.0, ended=1.0, overlap=0.9, chosen=-0.1, kl=0.0)
SETTINGS = Settings(learning_rate=3e-4, sft_weight=0.0, beta=None, chosen_length=12.0)


def test_an_answer_repeats_itself_when_its_4_grams_return():
    assert repeats([5] * 12)
    assert not repeats(list(range(12)))
    assert not repeats([1, 2])  # none at all


def test_distinct_2_grams_are_counted_over_all_answers():
    assert distinct_share([[1, 2, 3], [1, 2, 3]], 2) == 0.5
    assert distinct_share([[1], []], 2) == 1.0


def test_overlap_counts_tokens_as_often_as_both_have_them():
    assert token_f1([1, 1, 2], [1, 2, 3]) == pytest.approx(2 * 2 / 6)
    assert token_f1([], [1]) == 0.0


def test_the_figures_of_two_answers():
    rows = [
        WatchedRow([3], [4, 5, 2], [[4, 5], [9]], Origin("x", "test", 1)),
        WatchedRow([3], [6], [[7, 8]], Origin("x", "test", 2)),
    ]
    start = [Answered([4, 5], True, -1.0, [4, 2], -0.5), Answered([7, 8], True, -1.0, [7, 2], -0.5)]
    now = [Answered([4, 5], True, -2.0, [4, 2], -1.5), Answered([1] * 64, False, -6.0, [7, 2], -2.5)]
    found = measure(rows, now, start)
    assert found.repetition == 0.5
    assert found.length == (3 + 64) / 2
    assert found.ended == 0.5
    assert found.overlap == 0.5
    assert found.chosen == -8.0 / 4  # nats per token of 3 + 1 chosen tokens
    assert found.kl == (1.0 + 2.0) / 4  # nats per token of 2 + 2 drawn ones
    assert measure(rows, start, start).kl == 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"repetition": 0.3}, "repetition"),
        ({"ended": 0.6}, "ended"),
        ({"distinct": 0.3}, "distinct"),
        ({"length": 30.0}, "length"),
        ({"length": 3.0}, "length"),
        ({"overlap": 0.6}, "overlap"),
        ({"chosen": -0.35}, "chosen"),
    ],
    ids=str,
)
def test_each_figure_can_be_a_sign(change, name):
    assert [sign.name for sign in signs_of(WELL, replace(WELL, **change), SETTINGS)] == [name]


def test_a_run_that_is_well_has_no_sign():
    better = Measures(repetition=0.0, distinct=0.9, length=15.0, ended=1.0, overlap=0.95, chosen=-0.05, kl=0.4)
    assert signs_of(WELL, better, SETTINGS) == []


def test_a_model_that_knows_nothing_yet_has_nothing_to_lose():
    start = Measures(repetition=1.0, distinct=0.0, length=64.0, ended=0.0, overlap=0.0, chosen=-7.6, kl=0.0)
    assert signs_of(start, start, SETTINGS) == []
    assert signs_of(start, WELL, SETTINGS) == []


def test_answers_may_grow_as_long_as_the_responses_of_the_data():
    assert signs_of(WELL, replace(WELL, length=40.0), replace(SETTINGS, chosen_length=30.0)) == []


def test_chosen_responses_may_lose_as_much_as_published_runs_do():
    """-0.9 to -1.4 nats per token is what long training by SimPO does to a healthy model."""
    start, now = replace(WELL, chosen=-0.9), replace(WELL, chosen=-1.4)
    assert signs_of(start, now, SETTINGS) == []
    assert [sign.name for sign in signs_of(start, replace(WELL, chosen=-2.8), SETTINGS)] == ["chosen"]


def test_chosen_responses_that_were_learnt_and_are_lost_again_are_a_sign():
    """Better than at the start, and much worse than the run had them: a fluent model that is damaged."""
    now = replace(WELL, chosen=-0.15)
    assert signs_of(WELL, now, SETTINGS) == []
    (sign,) = signs_of(WELL, now, SETTINGS, best_chosen=-0.02)
    assert sign.text == "chosen responses have -0.15 nats per token (-0.10, -0.02 at best)"


def test_the_advice_names_the_settings_of_the_run():
    assert advice(SETTINGS, accuracy=0.8, share=0.9) == (
        "learning_rate 0.0003 is likely too high: try 0.0001; sft_weight: 1 holds the chosen responses."
    )
    dpo = Settings(learning_rate=1e-3, sft_weight=0.5, beta=0.1)
    assert advice(dpo, None, 0.1).endswith("a beta above 0.1 stays nearer to the reference.")
    assert advice(dpo, 1.0, 0.8).startswith("all training pairs are in order, and the run goes on: fewer epochs")


def test_rows_are_drawn_by_the_seed_and_short_enough():
    groups = [build_group(5, 4, 3, row=row) for row in range(30)] + [build_group(PROMPT_TOKENS + 1, 4, 3)] * 30
    rows = choose_rows(groups, 8, seed=1, layout=Layout.PAIRED)
    assert rows == choose_rows(groups, 8, seed=1, layout=Layout.PAIRED)
    assert rows != choose_rows(groups, 8, seed=2, layout=Layout.PAIRED)
    assert len(rows) == 8
    assert all(len(row.prompt_ids) == 5 for row in rows)
    assert len(choose_rows(groups[:3], 8, seed=1, layout=Layout.PAIRED)) == 3


def test_of_unpaired_rows_the_desirable_ones_are_watched():
    groups = [replace(build_group(5, 4, row=row), scores=(row % 2,)) for row in range(20)]
    rows = choose_rows(groups, 10, seed=0, layout=Layout.UNPAIRED)
    assert all(row.origin.row % 2 for row in rows)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr("preftune.train.watch.look.ANSWER_TOKENS", 8)


def watched(folder, action="warn", steps=2, loss=None, prompts=6, **changes):
    trainer = build_trainer(folder, loss=loss, **changes)
    return trainer, watch_collapse(trainer, prompts, steps, action)


def same_weights(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def figures(trainer):
    return [record for record in trainer.state.log_history if "watch/kl" in record]


@pytest.mark.parametrize("loss", [{"objective": "simpo", "keep_dropout": True}, {"objective": "dpo"}], ids=str)
def test_a_watched_run_ends_in_the_same_bits(tmp_path, loss):
    def model():
        return build_model("llama", attention_dropout=0.2)

    plain = build_trainer(tmp_path / "plain", loss=loss, model=model())
    plain.train()
    trainer, watch = watched(tmp_path / "watched", loss=loss, model=model())
    trainer.train()
    assert same_weights(trainer, plain)
    assert logged(trainer) == logged(plain)
    assert [record["step"] for record in figures(trainer)] == [0, 2, 4, 6, 8, 10]
    assert figures(trainer)[0]["watch/kl"] == 0.0
    assert figures(trainer)[-1]["watch/kl"] > 0.0
    assert watch.summary(loop=100.0)["looks"] == 6


def test_a_look_leaves_the_generators_and_the_mode_as_they_were(tmp_path):
    trainer, watch = watched(tmp_path)
    trainer.model.train()
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    watch.start = look.first_look(trainer, watch.rows, seed=1)
    assert look.look(trainer, watch.rows, watch.start) == watch.start
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert trainer.model.training


def test_the_start_is_that_of_the_run_after_a_resume(tmp_path):
    whole, _ = watched(tmp_path / "whole")
    whole.train()
    again, watch = watched(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert figures(again) == figures(whole)
    assert watch.began == 0
    lines = (tmp_path / "again/watch.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 8, 10]


def test_a_resume_without_a_start_says_so(tmp_path, caplog):
    build_trainer(tmp_path / "plain").train()
    trainer, watch = watched(tmp_path / "again")
    trainer.train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-5"))
    assert "held against step 5" in caplog.text
    assert watch.began == 5


RUINOUS = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 1e3}


def test_a_run_that_collapses_is_said_in_one_line_with_what_to_change(tmp_path, caplog):
    trainer, watch = watched(tmp_path, **RUINOUS)
    trainer.train()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Watch, step 2 of 10")]
    assert len(said) == 1
    assert "chosen responses have" in said[0]
    assert "try 0.3" in said[0]
    assert "chosen" in watch.summary(1.0)["signs"]
    assert trainer.state.global_step == 10


def test_a_run_that_is_to_stop_ends_with_the_reason_and_saves_nothing_of_it(tmp_path):
    trainer, _ = watched(tmp_path, action="stop", save_steps=2, **RUINOUS)
    with pytest.raises(TrainingError, match=r"at step 2; there is no earlier checkpoint\. Cause: learning_rate 1"):
        trainer.train()
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize(("save", "ends", "healthy"), [("no", 8, 6), ("steps", 8, 6), ("epoch", 7, 5)])
def test_a_rollback_ends_with_the_last_healthy_model(tmp_path, monkeypatch, save, ends, healthy):
    trainer, watch = watched(tmp_path, action="rollback", save_strategy=save, save_steps=3, save_total_limit=1)
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(trainer, 7))
    trainer.train()
    watch.settle()
    assert trainer.state.global_step == ends
    assert watch.summary(1.0)["rolled_back_to"] == healthy
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{healthy}"]
    plain = build_trainer(tmp_path / "plain", save_steps=healthy)
    plain.train()
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"plain/checkpoint-{healthy}").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())


def ill_from(trainer, step):
    """Signs from a step on, whatever the figures."""

    def signs(start, now, settings, best_chosen):
        ill = replace(now, chosen=start.chosen - 100)
        return signs_of(start, ill, settings) if trainer.state.global_step >= step else []

    return signs


def out_of_memory(*_):
    raise torch.OutOfMemoryError("out of memory")


def test_a_model_that_cannot_answer_is_trained_without_a_watch(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("preftune.train.watch.look.sample", out_of_memory)
    trainer, watch = watched(tmp_path)
    trainer.train()
    assert (
        "No collapse watch from step 0 on: the model gives no answers (OutOfMemoryError: out of memory)." in caplog.text
    )
    assert trainer.state.global_step == 10
    assert watch.summary(1.0)["looks"] == 0


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_run_that_is_to_end_when_it_collapses_does_not_go_on_unwatched(tmp_path, monkeypatch, action):
    """The look at step 4 fails: what follows would be saved without having been judged."""
    trainer, _ = watched(tmp_path, action=action, save_steps=2)
    usual = look.sample

    def sample(*given):
        return out_of_memory() if trainer.state.global_step == 4 else usual(*given)

    monkeypatch.setattr("preftune.train.watch.look.sample", sample)
    said = rf"on_collapse: {action}: the look at step 4 failed \(OutOfMemoryError.*step 2 is the last healthy one.*warn"
    with pytest.raises(TrainingError, match=said):
        trainer.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_start_that_cannot_be_looked_at_is_refused_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("preftune.train.watch.look.sample", out_of_memory)
    trainer, _ = watched(tmp_path, action="stop")
    with pytest.raises(TrainingError, match=r"the look at step 0 failed .*there is no earlier checkpoint"):
        trainer.train()


def test_a_checkpoint_that_was_saved_collapsed_is_no_healthy_one(tmp_path, monkeypatch):
    """A run that only warned saves on; gone on with under rollback, it does not go back to that."""
    first, _ = watched(tmp_path / "first", save_steps=2, max_steps=6)
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(first, 4))
    first.train()
    again, watch = watched(tmp_path / "again", action="rollback", save_steps=2, max_steps=6)
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(again, 4))
    with pytest.raises(TrainingError, match=r"collapses at step 6; there is no earlier checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "first/checkpoint-4"))
    watch.load(tmp_path / "first/checkpoint-2")
    assert watch.healthy == 2


def test_the_last_healthy_checkpoint_may_be_the_one_that_was_gone_on_with(tmp_path, monkeypatch):
    """It lies in the folder of another run."""
    first, _ = watched(tmp_path / "first", save_steps=2, max_steps=6)
    first.train()
    again, watch = watched(tmp_path / "again", action="rollback", save_steps=2, max_steps=6)
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(again, 6))
    again.train(resume_from_checkpoint=str(tmp_path / "first/checkpoint-4"))
    watch.settle()
    assert watch.rolled_back_to == 4
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "first/checkpoint-4").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.model.state_dict().items())


def test_a_healthy_checkpoint_that_is_gone_is_said(tmp_path, monkeypatch):
    trainer, watch = watched(tmp_path, action="rollback")
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(trainer, 7))
    trainer.train()
    for path in checkpoints(tmp_path):
        shutil.rmtree(path)
    with pytest.raises(TrainingError, match=r"on_collapse: rollback: the checkpoint of step 5, .* is no longer in"):
        watch.settle()


@pytest.mark.parametrize("best", [False, True])
def test_a_rollback_beside_the_best_checkpoints(tmp_path, monkeypatch, best):
    """Evaluations 4 and 6 are no best ones; their healthy looks are saved all the same."""
    trainer, watch = watched(
        tmp_path,
        action="rollback",
        steps=100,
        held_out=GROUPS[:5],
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        metric_for_best_model="lengths/chosen",  # the same at every evaluation: the first is the best
        load_best_model_at_end=best,
    )
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(trainer, 7))
    trainer.train()
    watch.settle()
    assert trainer.state.global_step == 8
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert watch.rolled_back_to == (None if best else 6)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{2 if best else 6}").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("ill", [7, 10])
def test_a_rollback_finds_the_newest_checkpoint_where_one_is_kept(tmp_path, monkeypatch, ill):
    """Beside the best one, of step 1; the run collapses within, or at its last step."""
    trainer, watch = watched(
        tmp_path,
        action="rollback",
        held_out=GROUPS[:5],
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        save_total_limit=1,
        metric_for_best_model="lengths/chosen",  # the same at every evaluation
    )
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(trainer, ill))
    trainer.train()
    watch.settle()
    assert watch.rolled_back_to == ill - 1
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{ill - 1}", "checkpoint-1"]


def test_a_rescue_checkpoint_is_looked_at_before_it_is_saved(tmp_path, monkeypatch):
    """The clock asks at every step; steps 3 and 5 are no looks of the watch's own."""
    loss = {"objective": "simpo", "rescue_minutes": 1e-9}
    trainer, watch = watched(tmp_path, action="rollback", loss=loss, save_strategy="no", steps=4)
    monkeypatch.setattr("preftune.train.watch.callback.signs_of", ill_from(trainer, 3))
    trainer.train()
    assert trainer.state.global_step == 3
    assert [path.name for path in checkpoints(tmp_path)] == ["rescue-2", "rescue-1"]
    watch.settle()
    assert watch.rolled_back_to == 2


def test_a_start_of_other_rows_is_not_gone_on_with(tmp_path, caplog):
    """As many prompts, but of another evaluation set: the figures of the start are not theirs."""
    first, _ = watched(tmp_path / "first", held_out=GROUPS[:6], save_steps=5)
    first.train()
    again, watch = watched(tmp_path / "again", held_out=GROUPS[6:12])
    again.train(resume_from_checkpoint=str(tmp_path / "first/checkpoint-5"))
    assert "watched with other prompts; what follows is held against step 5" in caplog.text
    assert watch.began == 5


def test_a_line_of_answers_is_one_line():
    record = {"answer": "你好\u2028\x85\n"}
    assert callback._line(record).splitlines() == ['{"answer": "你好\\u2028\\u0085\\n"}']
    assert json.loads(callback._line(record)) == record


def test_a_short_run_is_looked_at_at_its_start_and_at_its_end(tmp_path):
    trainer, _ = watched(tmp_path, steps=None, max_steps=4)
    trainer.train()
    assert [record["step"] for record in figures(trainer)] == [0, 4]
    assert [record["step"] for record in read_log(tmp_path / "watch.jsonl")] == [0, 4]


def test_a_look_at_every_evaluation(tmp_path):
    trainer, watch = watched(tmp_path, steps=100, held_out=build_groups(9, longest=9), eval_strategy="epoch")
    trainer.train()
    assert [record["step"] for record in figures(trainer)] == [0, 5, 10]
    held_out = {tuple(group.prompt_ids) for group in build_groups(9, longest=9)}
    assert all(tuple(row.prompt_ids) in held_out for row in watch.rows)


def test_what_cannot_be_watched_is_said_and_refused_where_it_is_needed(tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = build_trainer(tmp_path, groups=[build_group(PROMPT_TOKENS + 1, 4, 3)])
    assert watch_collapse(trainer) is None
    assert "No collapse watch: no prompt is short enough to be answered." in caplog.text
    with pytest.raises(TrainingError, match="on_collapse: rollback needs the collapse watch"):
        watch_collapse(trainer, action="rollback")


def test_an_engine_that_could_not_go_back_is_refused(tmp_path):
    trainer = build_trainer(tmp_path, save_only_model=True)
    trainer.is_fsdp_enabled = True
    with pytest.raises(RecipeError, match=r"read none that has the model alone\. Set save_only_model: false"):
        watch_collapse(trainer, action="rollback")


def test_what_is_watched_is_trained_on_where_nothing_is_held_out(tmp_path):
    _, watch = watched(tmp_path, prompts=100)
    assert len(watch.rows) == len(GROUPS)
