"""A step that is not finite: it is not taken, its rows are named and kept, and `preftune replay` finds the place."""

from __future__ import annotations

import json

import pytest
import torch

from preftune.cli.main import main
from preftune.data.pack import pack, unpack
from preftune.errors import TrainingError
from preftune.train.nonfinite import MOST_SKIPPED, load_rows
from tests.small import build_group, build_groups, build_model
from tests.train.test_trainer import GROUPS, STEPS, build_trainer, losses_of


def poisoned_trainer(folder, steps, **more):
    """The gradient is infinite in these steps, counted from 1."""
    trainer = build_trainer(folder, save_strategy="no", loss={"objective": "simpo", **more})

    def poison(grad):
        return grad * float("inf") if trainer.state.global_step + 1 in steps else grad

    trainer.model.get_input_embeddings().weight.register_hook(poison)
    return trainer


def test_the_weights_are_those_before_the_step(tmp_path):
    trainer = poisoned_trainer(tmp_path / "bad", {4})
    with pytest.raises(TrainingError, match=r"gradient became non-finite at step 4.*preftune replay .*step-4"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    step, groups = load_rows(tmp_path / "bad/nonfinite/step-4")
    assert (step, len(groups)) == (4, 16)
    assert {group.origin for group in groups} <= {group.origin for group in GROUPS}


def test_a_step_is_skipped_and_leaves_no_trace_in_the_log(tmp_path, caplog):
    trainer = poisoned_trainer(tmp_path, {4}, on_nonfinite="skip")
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert "The step is left out (1 of at most 10)" in caplog.text
    losses = losses_of(trainer)
    assert len(losses) == STEPS - 1  # a line a step, and none for this one
    assert torch.tensor(losses).isfinite().all()


def test_a_skipped_step_counts_for_nothing_in_its_window(tmp_path):
    """Of 2 steps with one left out, the line is that of the other."""
    plain = build_trainer(tmp_path / "plain", save_strategy="no", loss={"objective": "simpo"}, logging_steps=1)
    plain.train()
    trainer = poisoned_trainer(tmp_path / "skip", {2}, on_nonfinite="skip")
    trainer.args.logging_steps = trainer.state.logging_steps = 2
    trainer.train()
    assert losses_of(trainer)[0] == losses_of(plain)[0]


def test_too_many_skipped_steps_stop_the_run(tmp_path):
    trainer = poisoned_trainer(tmp_path, set(range(1, 100)), on_nonfinite="skip")
    trainer.args.num_train_epochs = 4
    with pytest.raises(TrainingError, match=f"It is the {MOST_SKIPPED + 1}th such step"):
        trainer.train()


@pytest.mark.parametrize("how", [{}, {"share_prompt": False}, {"feed_last": True}], ids=str)
@pytest.mark.parametrize("responses", [1, 2, 3])
def test_unpacking_gives_the_groups_that_were_packed(how, responses):
    groups = [*build_groups(9, responses=responses), build_group(3, *[4] * responses, opening=2)]
    for group in groups:
        group.__dict__.update(scores=tuple(float(n) for n in range(responses)), weight=0.5)
    assert unpack(pack(groups, **how)) == groups


def test_unpacking_ranked_groups_of_different_sizes():
    groups = [build_group(3, 2, 5, 4, row=1), build_group(4, 1, 1, row=2), build_group(2, 6, row=3)]
    found = unpack(pack(groups))
    assert [group.response_ids for group in found] == [group.response_ids for group in groups]
    assert [group.prompt_ids for group in found] == [group.prompt_ids for group in groups]


def test_replay_names_row_module_and_weight(tmp_path, capsys):
    from preftune.recipe import load_recipe

    groups = [build_group(5, 4, 6, row=row) for row in range(1, 17)]
    for group in groups:
        for ids in (group.prompt_ids, *group.response_ids):
            ids[:] = [token if token != 4 else 5 for token in ids]
    groups[10].prompt_ids[2] = 4
    model = build_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = float("nan")
    trainer = build_trainer(tmp_path, model, groups=groups)
    with pytest.raises(TrainingError, match=r"at step 1, in 1 groups: small\[train\] row 11\."):
        trainer.train()
    recipe = load_recipe(None, {"model_name_or_path": "m", "dataset": "d"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    folder = str(tmp_path / "nonfinite/step-1")
    assert main(["replay", folder]) == 1
    shown = capsys.readouterr().out
    assert "small[train] row 11: log-probs nan nan" in shown
    assert "first in model.embed_tokens" in shown
    assert "weights that are not finite: model.embed_tokens.weight" in shown
    assert main(["replay", folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    bad = [row for row in found["rows"] if row["first"]]
    assert [row["row"] for row in bad] == ["small[train] row 11"]
    assert main(["replay", str(tmp_path)]) == 2
    assert "RUN/nonfinite/step-N was expected" in capsys.readouterr().err
