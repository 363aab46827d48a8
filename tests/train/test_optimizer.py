"""Which optimizer a run takes, and what it does to the weights of one."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from preftune.errors import RecipeError
from preftune.recipe import load_recipe
from preftune.train.master import MasterAdamW
from preftune.train.optimizer import choose_optimizer, movable_share
from preftune.train.split import SplitAdamW, join_words
from tests.small import build_model
from tests.train.test_trainer import arguments, build_trainer

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "master", "state", "wanted"),
    [
        (torch.float32, True, "float32", None),
        (torch.float32, True, "8bit", SplitAdamW),
        (torch.float32, False, "bfloat16", SplitAdamW),
        (BF16, True, "float32", MasterAdamW),
        (BF16, "split", "float32", SplitAdamW),
        (BF16, True, "8bit", SplitAdamW),
        (BF16, False, "float32", None),
    ],
)
def test_the_optimizer_follows_from_the_weights_and_the_recipe(tmp_path, dtype, master, state, wanted):
    chosen = choose_optimizer(build_model().to(dtype), arguments(tmp_path), master, state)
    assert (chosen and chosen[0]) is wanted
    if wanted is SplitAdamW:
        assert chosen[1]["moments"] == state and chosen[1]["fused"] is True and chosen[1]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("dtype", "changes", "keys", "message"),
    [
        (BF16, {"optim": "sgd"}, ("split", "float32"), "'sgd' cannot keep float32 masters"),
        (torch.float32, {"optim": "sgd"}, (True, "8bit"), "'sgd' cannot keep its state in 8bit"),
        (BF16, {}, (False, "8bit"), "Set master_weights: split"),
        (torch.float16, {}, ("split", "float32"), "these are float16"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, dtype, changes, keys, message):
    with pytest.raises(RecipeError, match=message):
        choose_optimizer(build_model().to(dtype), arguments(tmp_path, **changes), *keys)


def test_sharded_weights_have_no_split_master(tmp_path):
    with pytest.raises(RecipeError, match="FSDP and DeepSpeed shard them"):
        choose_optimizer(build_model().to(BF16), arguments(tmp_path), "split", sharded=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"master_weights": "split"}, "'master_weights' split has no effect.*torch_dtype is null"),
        ({"master_weights": "half"}, "true or false or one of split"),
        (
            {"torch_dtype": "bfloat16", "master_weights": False, "optimizer_state": "8bit"},
            "'optimizer_state' 8bit needs",
        ),
        ({"optimizer_state": "4bit"}, "one of float32, bfloat16, 8bit"),
    ],
)
def test_a_recipe_says_what_is_wrong_before_anything_is_loaded(values, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, {"model_name_or_path": "m", "dataset": "d", **values})


# --- bare bfloat16 weights


@pytest.mark.parametrize(("rate", "wanted"), [(1e-6, 0.0195), (3e-7, 0.0049)])
def test_the_share_of_bfloat16_weights_that_can_move_is_what_a_simulation_moves(rate, wanted):
    """100 steps of AdamW on weights of deviation 0.02, with a gradient that is half constant, half noise."""
    torch.manual_seed(0)
    weight = nn.Parameter((torch.randn(200_000) * 0.02).to(BF16))
    start, constant = weight.detach().clone(), torch.randn(200_000)
    share = movable_share([weight], rate)
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0, fused=True)
    for _ in range(100):
        weight.grad = (constant + torch.randn(200_000)).to(BF16)
        optimizer.step()
    moved = (weight != start).float().mean().item()
    assert share == pytest.approx(wanted, rel=0.05)
    assert moved == pytest.approx(share, rel=0.1)


def test_float32_weights_all_move_and_are_not_counted():
    assert movable_share([torch.ones(5)], 1e-6) == 0
    assert movable_share([torch.ones(5), torch.zeros(5, dtype=BF16)], 1e-6) == 1


def test_bare_bfloat16_weights_are_warned_of_with_their_own_figure(tmp_path, caplog):
    model = build_model().to(BF16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)  # half a digit of it is 2^-10, about 0.001
        model.get_input_embeddings().weight.fill_(2**-30)
    share = model.get_input_embeddings().weight.numel() / model.num_parameters()
    with caplog.at_level(logging.WARNING, "preftune"):
        choose_optimizer(model, arguments(tmp_path, learning_rate=1e-6), False)
    assert (
        f"learning rate 1e-06 is less than half the last digit of most weights, so {share:.1%} of them" in caplog.text
    )


# --- through the trainer


def words(trainer):
    """The masters, whole."""
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, SplitAdamW)
    weights = list(trainer.model.parameters())
    return [join_words(weight.detach().view(-1), optimizer.state[weight]["low"]).clone() for weight in weights]


@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_a_run_with_a_split_master_resumes_bit_for_bit(tmp_path, state):
    def trainer(name):
        model = build_model("llama").to(BF16)
        return build_trainer(
            tmp_path / name, model, loss={"objective": "simpo", "master_weights": "split", "optimizer_state": state}
        )

    whole = trainer("whole")
    whole.train()
    again = trainer("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert all(torch.equal(one, other) for one, other in zip(words(again), words(whole), strict=True))


def test_gradients_reach_a_split_master_in_float32(tmp_path):
    trainer = build_trainer(
        tmp_path, build_model("llama").to(BF16), loss={"objective": "simpo", "master_weights": "split"}, max_steps=1
    )
    trainer.create_optimizer()
    assert {parameter.grad_dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_an_adapter_has_float32_weights_and_nothing_to_split(tmp_path):
    from preftune.model.lora import LoraSettings, add_adapter

    model = add_adapter(build_model("llama").to(BF16), LoraSettings(r=2, alpha=4))
    assert choose_optimizer(model, arguments(tmp_path), "split") is None
