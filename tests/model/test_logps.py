"""The head alone: tiles, transforms and gradients against the textbook line."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from preftune.model import logps
from preftune.model.logps import HeadTransform, chunked_logps, fused_group_loss, rows_per_tile

LENGTHS = torch.tensor([[3, 5], [1, 1], [9, 2]])
ROWS = int(LENGTHS.sum())
OWNER = torch.repeat_interleave(torch.arange(6), LENGTHS.flatten())
TRANSFORMS = [HeadTransform(), HeadTransform(0.5), HeadTransform(1.0, 3.0), HeadTransform(2.0, 1.5)]


def tensors(dtype=torch.float64, vocabulary=50, bias=True):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(vocabulary, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return states, weight, offset, torch.randint(0, vocabulary, (ROWS,), generator=generator)


@pytest.fixture(params=["swept in threes", "swept whole"])
def sweeps(request, monkeypatch):
    """A tile that is read a few rows at a time, and in one go."""
    if request.param == "swept in threes":
        monkeypatch.setitem(logps.SWEEP_BYTES, "cpu", 3 * 4 * 50)


def textbook(states, weight, bias, targets, transform):
    logits = torch.nn.functional.linear(states, weight, bias) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def group_loss(sums, groups):
    means = sums / LENGTHS[groups]
    return torch.nn.functional.softplus(means[:, 1] - 2 * means[:, 0]).sum()


@pytest.mark.parametrize("tile_rows", [1, 4, 7, 100])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_logps_and_their_gradients(transform, tile_rows, bias, sweeps):
    states, weight, offset, targets = tensors(bias=bias)
    inputs = [x for x in (states, weight, offset) if x is not None]
    grad = torch.randn(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = textbook(states, weight, offset, targets, transform)
    found = chunked_logps(states, weight, offset, targets, transform, tile_rows)
    assert torch.allclose(found, wanted, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("tile_rows", [1, 4, 8, 100])  # 1 and 4: groups longer than a tile
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_group_loss_and_its_gradients(transform, tile_rows, bias, sweeps):
    states, weight, offset, targets = tensors(bias=bias)
    inputs = [x for x in (states, weight, offset) if x is not None]
    logps = textbook(states, weight, offset, targets, transform)
    sums = torch.zeros(6, dtype=torch.float64).index_add(0, OWNER, logps).view(3, 2)
    wanted = 0.7 * group_loss(sums, slice(None))
    rows = LENGTHS.sum(1).tolist()
    loss, found = fused_group_loss(states, weight, offset, targets, transform, OWNER, 2, rows, group_loss, tile_rows)
    assert torch.allclose(found, sums, atol=1e-12)
    assert not found.requires_grad
    wanted_gradients = torch.autograd.grad(wanted, inputs)
    for one, other in zip(torch.autograd.grad(0.7 * loss, inputs), wanted_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize(("fused", "frozen", "products"), [(True, False, 3), (True, True, 2), (False, False, 4)])
def test_matrix_products_of_the_head(fused, frozen, products):
    """Forward, states, weight; one more forward where the tile is made again; none for a frozen weight."""
    states, weight, _, targets = tensors(bias=False)
    weight.requires_grad_(not frozen)
    rows = LENGTHS.sum(1).tolist()
    with FlopCounterMode(display=False) as counter:
        if fused:
            loss, _ = fused_group_loss(states, weight, None, targets, HeadTransform(), OWNER, 2, rows, group_loss)
        else:
            loss = chunked_logps(states, weight, None, targets, HeadTransform()).sum()
        loss.backward()
    assert counter.get_total_flops() == products * 2 * ROWS * weight.numel()
    assert (weight.grad is None) == frozen


def test_the_last_tile_of_a_long_group_is_not_made_again():
    """Groups of 8, 2 and 11 rows in tiles of 4: of the first 4 rows are made again, of the last 3 + 4."""
    states, weight, _, targets = tensors(bias=False)
    weight.requires_grad_(False)  # two products: forward and states
    rows = LENGTHS.sum(1).tolist()
    with FlopCounterMode(display=False) as counter:
        fused_group_loss(states, weight, None, targets, HeadTransform(), OWNER, 2, rows, group_loss, tile_rows=4)
    assert counter.get_total_flops() == (2 * ROWS + 4 + 3 + 4) * 2 * weight.numel()


@pytest.mark.parametrize("tile_rows", [4, 100])
@pytest.mark.parametrize("fused", [True, False])
def test_low_precision_gradients_are_near_the_exact_ones(fused, tile_rows, sweeps):
    """Four roundings to bf16 (states, weight, probabilities, product), each 0.2 % at most."""
    states, weight, offset, targets = tensors(torch.float32)
    inputs = (states, weight, offset)
    rows = LENGTHS.sum(1).tolist()

    def loss_of(inputs, tile_rows, fused):
        if fused:
            return fused_group_loss(*inputs, targets, HeadTransform(), OWNER, 2, rows, group_loss, tile_rows)[0]
        found = chunked_logps(*inputs, targets, HeadTransform(), tile_rows)
        return group_loss(found.new_zeros(6).index_add(0, OWNER, found).view(3, 2), slice(None))

    exact = torch.autograd.grad(loss_of([x.double() for x in inputs], None, fused=False), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(inputs, tile_rows, fused)
    for one, other in zip(torch.autograd.grad(loss, inputs), exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 8e-3 * other.norm()


def test_a_second_backward_fails_instead_of_being_wrong():
    states, weight, _, targets = tensors(bias=False)
    rows = LENGTHS.sum(1).tolist()
    loss, _ = fused_group_loss(states, weight, None, targets, HeadTransform(), OWNER, 2, rows, group_loss)
    loss.backward(retain_graph=True)
    with pytest.raises(TypeError):
        loss.backward()


def test_low_precision_states_give_float32_logps_near_the_exact_ones():
    states, weight, _, targets = tensors(torch.float32, vocabulary=4000, bias=False)
    exact = textbook(states.double(), weight.double(), None, targets, HeadTransform())
    low = chunked_logps(states.bfloat16(), weight.bfloat16(), None, targets, HeadTransform())
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        cast = chunked_logps(states, weight, None, targets, HeadTransform())
    assert torch.equal(cast, low)


def test_large_logits_do_not_overflow():
    states, weight, _, targets = tensors(torch.float32, bias=False)
    found = chunked_logps(states * 1e4, weight, None, targets, HeadTransform())
    assert found.isfinite().all()


def test_many_words_do_not_bias_the_log_probs():
    generator = torch.Generator().manual_seed(0)
    weight = 4 * torch.randn(32_000, 1, generator=generator)
    targets = torch.randint(0, 32_000, (500,), generator=generator)
    found = chunked_logps(torch.ones(500, 1), weight, None, targets, HeadTransform())
    exact = weight[:, 0].double().log_softmax(0)[targets]
    assert abs((found - exact).mean()) < 5e-7  # nats; float32 resolves 1.9e-6 at -20


def test_tiles_are_chosen_by_bytes():
    assert rows_per_tile(32_000, torch.device("cpu"), torch.float32) == 524
    assert rows_per_tile(32_000, torch.device("cpu"), torch.bfloat16) == 1048
    assert rows_per_tile(10**9, torch.device("cpu"), torch.float32) == 16


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"logit_scale": 0.25}, HeadTransform(0.25)),
        ({"logits_scaling": 4.0}, HeadTransform(0.25)),
        ({"final_logit_softcapping": 30.0}, HeadTransform(1.0, 30.0)),
        ({"lm_head_multiplier": 2.0}, HeadTransform(2.0)),
        ({}, HeadTransform()),
    ],
)
def test_the_transform_is_read_from_the_configuration(config, wanted):
    assert HeadTransform.of(type("Config", (), config)()) == wanted
