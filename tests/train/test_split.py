"""The optimizer over split masters: against AdamW on a float32 copy, in bytes, across a resume, and on SimPO itself."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preftune.data.plan import Cut
from preftune.demo.corpus import pair_rows
from preftune.model.policy import to_policy
from preftune.objectives import load_objective
from preftune.train.master import MasterAdamW
from preftune.train.moments import BLOCK, MOMENTS, Noise, Scratch
from preftune.train.split import SplitAdamW, join_words, split_words_
from preftune.train.step import StepLoss, build_step, run_step
from preftune.types import Origin, TokenizedGroup
from tests.small import build_model

SMALL_MOMENTS = ["bfloat16", "8bit"]
SHAPES = [(300, 513), (7,), (1,), (256, 512)]  # 153 900 numbers are more than one part of a CPU
CPU = torch.device("cpu")


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter((torch.randn(shape) * 0.02).bfloat16().to(dtype)) for shape in SHAPES]


def groups_of(weights: list[nn.Parameter]) -> list[dict]:
    return [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=draw) * 10.0 ** (step % 5 - 4)


def master_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
    state = optimizer.state[weight]
    return join_words(weight.detach().view(-1), state["low"]).clone() if "low" in state else weight.detach().view(-1)


def train(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in steps:
        give_gradients(weights, step)
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


# --- words


def test_the_words_hold_every_float32_bit_for_bit_and_the_weight_is_the_nearest():
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-40,
        -1e-45,
        3e38,
        float("inf"),
        -float("inf"),
        1 + 2**-8,
        1 + 3 * 2**-8,
        -(1 + 2**-8),
    ]
    torch.manual_seed(0)
    exponents = torch.randint(-126, 126, (5000,))
    master = torch.cat([torch.tensor(edges), torch.ldexp(torch.randn(5000), exponents)])
    high, low = torch.empty(master.numel(), dtype=torch.bfloat16), torch.empty(master.numel(), dtype=torch.int16)
    split_words_(high, low, master.clone())
    assert torch.equal(join_words(high, low).view(torch.int32), master.view(torch.int32))
    tie = low == -32768
    assert torch.equal(high[~tie], master[~tie].bfloat16())
    assert high[tie].abs().tolist() == [1 + 2**-7, 1 + 2**-6, 1 + 2**-7]  # ties go away from zero


# --- exactness


@pytest.mark.parametrize("fused", [True, None])
def test_with_float32_moments_the_master_is_that_of_adamw_bit_for_bit(fused):
    exact, split = parameters(torch.float32), parameters(torch.bfloat16)
    settings = {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-6, "fused": fused}
    train(exact, torch.optim.AdamW(groups_of(exact), **settings), range(12))
    optimizer = SplitAdamW(groups_of(split), **settings)
    train(split, optimizer, range(12))
    for wanted, found in zip(exact, split, strict=True):
        assert torch.equal(master_of(optimizer, found), wanted.detach().view(-1))


@pytest.mark.parametrize("moments", ["float32", *SMALL_MOMENTS])
def test_float32_weights_are_stepped_as_a_split_master_is(moments):
    whole, split = parameters(torch.float32), parameters(torch.bfloat16)
    direct, words = (SplitAdamW(groups_of(w), lr=1e-3, moments=moments, fused=True) for w in (whole, split))
    train(whole, direct, range(6))
    train(split, words, range(6))
    for wanted, found in zip(whole, split, strict=True):
        assert torch.equal(master_of(words, found), wanted.detach().view(-1))
    assert not any("low" in direct.state[weight] for weight in whole)


def test_weights_that_are_not_contiguous_are_stepped_too():
    plain, turned = (nn.Parameter(torch.full((3, 4), 0.5, dtype=torch.bfloat16)) for _ in range(2))
    turned.data = turned.data.t().contiguous().t()
    for weight in (plain, turned):
        optimizer = SplitAdamW([weight], lr=0.1, fused=True)
        weight.grad = torch.arange(12.0).view(3, 4) - 5
        optimizer.step()
    assert torch.equal(plain, turned)
    assert not turned.is_contiguous()


# --- moments


@pytest.mark.parametrize("moments", SMALL_MOMENTS)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_what_is_kept_of_a_moment_is_right_on_average_and_near_each_time(moments, name):
    torch.manual_seed(2)
    wanted = torch.randn(600) * 10.0 ** torch.randint(-3, 1, (600,))
    wanted = wanted if name == "exp_avg" else wanted.square()
    kept, part = MOMENTS[moments], slice(0, 600)
    state = kept.fresh(wanted)
    draws = []
    for step in range(400):
        scratch, noise = Scratch(3 * BLOCK, CPU), Noise(step, 3 * BLOCK, CPU)
        values = kept.read(state, name, part, scratch).copy_(wanted)
        kept.write(state, name, part, values, scratch, noise)
        draws.append(kept.read(state, name, part, scratch).clone())
    found = torch.stack(draws)
    often = ((found == found.amax(dim=0)).float().mean(dim=0) - 0.5).abs() < 0.45  # both neighbours were taken
    spread = found.std(dim=0) / 20  # of the mean of 400
    assert often.float().mean() > 0.8
    assert ((found.mean(dim=0) - wanted).abs() <= 5 * spread)[often].all()
    largest = wanted.abs().amax()
    assert (found - wanted).abs().max() <= largest / (128 if moments == "bfloat16" else 60)


@pytest.mark.parametrize("moments", SMALL_MOMENTS)
def test_the_second_moment_decays_where_rounding_to_the_nearest_would_stand_still(moments):
    weight = nn.Parameter(torch.zeros(4 * BLOCK))
    optimizer = SplitAdamW([weight], lr=0.0, moments=moments, fused=True)
    weight.grad = torch.linspace(0.1, 1, 4 * BLOCK)
    optimizer.step()
    kept, part, scratch = optimizer.moments, slice(0, 4 * BLOCK), Scratch(4 * BLOCK, CPU)
    before = kept.read(optimizer.state[weight], "exp_avg_sq", part, scratch).clone()
    nearest = before.bfloat16()
    weight.grad = torch.zeros(4 * BLOCK)
    for _ in range(500):
        optimizer.step()
        nearest = (nearest.float() * 0.999).bfloat16()
    after = kept.read(optimizer.state[weight], "exp_avg_sq", part, scratch)
    assert (after.sum() / before.sum()).item() == pytest.approx(0.999**500, rel=0.02)
    assert (nearest.float().sum() / before.sum()).item() > 0.9


# --- memory and state


@pytest.mark.parametrize(("moments", "wanted"), [("float32", 12), ("bfloat16", 8), ("8bit", 6 + 2 * 4 / 256)])
def test_bytes_a_parameter_of_weights_and_state(moments, wanted):
    weight = nn.Parameter(torch.zeros(64, 1024, dtype=torch.bfloat16))
    optimizer = SplitAdamW([weight], moments=moments, fused=True)
    weight.grad = torch.zeros(64, 1024)
    optimizer.step()
    held = [weight, *(value for value in optimizer.state[weight].values() if isinstance(value, Tensor))]
    assert sum(tensor.nbytes for tensor in held) / weight.numel() == pytest.approx(wanted)
    assert not optimizer.scratch and not optimizer.noises  # what a step needs beside is given back


@pytest.mark.parametrize("moments", ["float32", *SMALL_MOMENTS])
def test_a_saved_and_loaded_state_goes_on_bit_for_bit(moments, tmp_path):
    make = partial(SplitAdamW, lr=1e-2, moments=moments, fused=True)
    whole, broken = parameters(torch.bfloat16), parameters(torch.bfloat16)
    one, first = make(groups_of(whole)), make(groups_of(broken))
    train(whole, one, range(4))
    train(whole, one, range(4, 8))
    train(broken, first, range(4))
    torch.save({"weights": broken, "state": first.state_dict()}, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=False)
    second = make(groups_of(saved["weights"]))
    second.load_state_dict(saved["state"])
    train(saved["weights"], second, range(4, 8))
    for wanted, found in zip(whole, saved["weights"], strict=True):
        assert torch.equal(master_of(second, found), master_of(one, wanted))
        for name, value in one.state[wanted].items():
            assert (
                second.state[found][name] == value if name == "step" else torch.equal(second.state[found][name], value)
            )


def test_other_types_of_weights_are_refused():
    with pytest.raises(ValueError, match="steps bfloat16 and float32 weights, found"):
        SplitAdamW([nn.Parameter(torch.zeros(2, dtype=torch.float16))])


# --- on SimPO


def byte_groups(count: int) -> list[TokenizedGroup]:
    """Pairs of the demo, a byte a token, cut short."""

    def ids(text: str, longest: int) -> list[int]:
        return [3 + byte % 208 for byte in text.encode()][:longest]

    return [
        TokenizedGroup(
            ids(row.question, 24), [ids(row.answer_zh, 16), ids(row.answer_en, 16)], Origin("demo", "train", number)
        )
        for number, row in enumerate(pair_rows(0)[:count], start=1)
    ]


def simpo_update(dtype: torch.dtype, make: type, rate: float, steps: int, **settings: object) -> Tensor:
    """How far the (master) weights have moved after these steps of four pairs."""
    model = to_policy(build_model("llama", num_hidden_layers=2).to(torch.bfloat16).to(dtype), "packed")
    weights = list(model.parameters())
    start = torch.cat([weight.detach().float().view(-1) for weight in weights])
    optimizer = make(weights, lr=rate, fused=True, weight_decay=0.0, **settings)
    groups, loss = byte_groups(4 * steps), StepLoss(load_objective("simpo"))
    for step in range(steps):
        run_step(model, build_step(groups[4 * step : 4 * step + 4], Cut(max_groups=4)), loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([master_of(optimizer, weight) for weight in weights]).float() - start


def test_simpo_with_a_split_master_and_8_bits_follows_float32_weights():
    exact = simpo_update(torch.float32, torch.optim.AdamW, 1e-6, steps=10)
    update = simpo_update(torch.bfloat16, SplitAdamW, 1e-6, steps=10, moments="8bit")
    assert F.cosine_similarity(update, exact, dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("rate", [3e-7, 1e-6])
def test_simpo_over_200_steps_with_a_split_master_follows_float32_weights(rate):
    exact = simpo_update(torch.float32, torch.optim.AdamW, rate, steps=200)
    for moments in ("float32", *SMALL_MOMENTS):
        update = simpo_update(torch.bfloat16, SplitAdamW, rate, steps=200, moments=moments)
        assert F.cosine_similarity(update, exact, dim=0) > 0.99, moments
        assert update.norm() / exact.norm() == pytest.approx(1, abs=0.02)
    bare = simpo_update(torch.bfloat16, torch.optim.AdamW, rate, steps=200)
    assert F.cosine_similarity(bare, exact, dim=0) < 0.2  # the reason for a master


def test_a_split_master_and_a_copied_one_take_the_same_steps():
    """Given the same gradients; their bfloat16 weights differ where a master lies half way between two of them."""
    model = build_model("llama").to(torch.bfloat16)
    copied, split = list(model.parameters()), [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    one, other = MasterAdamW(copied, lr=1e-3, fused=True), SplitAdamW(split, lr=1e-3, fused=True)
    for step in range(5):
        give_gradients(copied, step)
        give_gradients(split, step)
        one.step()
        other.step()
    for (_, master), weight in zip(one.pairs, split, strict=True):
        assert torch.equal(master_of(other, weight), master.detach().view(-1))
