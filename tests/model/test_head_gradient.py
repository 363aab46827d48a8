"""The head's gradient straight into `.grad`: the same numbers, one buffer, and only where nobody else takes part."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from preftune.data.plan import Cut
from preftune.model.head_gradient import straight_into_grad, takes_sums
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import to_policy
from preftune.objectives import load_objective
from preftune.train.master import take_float32_gradients
from preftune.train.step import StepLoss, build_step, micro_batch_loss, run_step, step_counts
from tests.small import VOCABULARY, build_groups, build_model, gradients

LOSS = StepLoss(load_objective("simpo"))
STEP = build_step(build_groups(6), Cut(max_groups=2))  # three micro-batches


def through_autograd(model, loss=LOSS):
    for batch in STEP.micro_batches:
        share, _ = micro_batch_loss(model, batch, loss, step_counts(STEP))
        share.backward()
    return gradients(model)


def straight(model, loss=LOSS):
    run_step(model, STEP, loss)
    return gradients(model)


def recomputed(model):
    """With the tiles made again in backward."""
    for batch in STEP.micro_batches:
        with straight_into_grad():
            loss = LOSS.total(model(batch=batch), None, batch.feedback, batch.weights, step_counts(STEP))
            loss.backward()
    return gradients(model)


def policy_of(name="llama", dtype=torch.float32, master=False):
    model = to_policy(build_model(name, dtype), "packed")
    for parameter in model.parameters() if master else ():
        take_float32_gradients(parameter)
    return model


@pytest.mark.parametrize(
    ("name", "dtype", "master"),
    [
        ("llama", torch.float32, False),
        ("llama-tied", torch.float32, False),
        ("gemma2", torch.float32, False),
        ("llama", torch.bfloat16, True),
        ("llama-tied", torch.bfloat16, True),
        ("llama", torch.bfloat16, False),
    ],
)
@pytest.mark.parametrize("way", [straight, recomputed])
def test_the_gradients_are_those_of_autograd(name, dtype, master, way):
    model = policy_of(name, dtype, master)
    wanted = through_autograd(model)
    model.zero_grad()
    found = way(model)
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)


def test_under_autocast_too():
    model = policy_of()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = through_autograd(model)
        model.zero_grad()
        found = straight(model)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-6)


class Biggest(TorchDispatchMode):
    """Counts the tensors of the head's size that operations make."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.made = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::mm" and out.shape == self.shape:
            self.made.append(func._schema.name)
        return out


def test_one_buffer_of_the_heads_size_is_made_in_a_step_of_three_micro_batches():
    model = policy_of()
    shape = model.lm_head.weight.shape
    with Biggest(shape) as mode:
        straight(model)
    one = mode.made
    model.zero_grad()
    with Biggest(shape) as mode:
        through_autograd(model)
    assert len(one) == 1
    assert len(mode.made) == 3


# --- where it stays off


def test_it_stays_off_without_the_promise_and_where_somebody_else_takes_part():
    with straight_into_grad():
        plain = nn.Parameter(torch.zeros(2, 2))
        assert takes_sums(plain, torch.float32)
        assert not takes_sums(nn.Parameter(torch.zeros(2, 2).bfloat16()), torch.float32)
        assert not takes_sums(nn.Parameter(torch.zeros(2, 2), requires_grad=False), torch.float32)
        assert not takes_sums(plain * 1, torch.float32)
        for register in ("register_hook", "register_post_accumulate_grad_hook"):
            hooked = nn.Parameter(torch.zeros(2, 2))
            getattr(hooked, register)(lambda _: None)
            assert not takes_sums(hooked, torch.float32)
        with straight_into_grad(False):
            assert not takes_sums(plain, torch.float32)
    assert not takes_sums(plain, torch.float32)


def test_hooks_on_the_weight_see_its_gradient():
    model, seen = policy_of(), []
    wanted = through_autograd(copy.deepcopy(model))
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(1))
    found = straight(model)
    assert len(seen) == 3
    torch.testing.assert_close(found["lm_head.weight"], wanted["lm_head.weight"])


def test_a_scaled_loss_breaks_the_promise():
    model = policy_of()
    with straight_into_grad():
        share, _ = micro_batch_loss(model, STEP.micro_batches[0], LOSS, step_counts(STEP))
        with pytest.raises(RuntimeError, match="scaled before backward"):
            (share * 2).backward()


def test_an_adapter_on_the_head_gets_its_gradients_as_before():
    model = add_adapter(build_model(), LoraSettings(r=2, alpha=4, target_modules=["ALL", "lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model = to_policy(model, "packed")
    wanted = through_autograd(model)
    model.zero_grad()
    found = straight(model)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key])


class HeadProducts(TorchDispatchMode):
    """Matrix products that have the vocabulary as one of their sizes, by what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {"logits": 0, "states": 0, "weight": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"):
            rows, inner, columns = out.shape[-2], args[-1].shape[-2], out.shape[-1]
            kinds = {rows: "weight", columns: "logits", inner: "states"}
            if VOCABULARY in kinds:
                self.found[kinds[VOCABULARY]] += 2 * rows * inner * columns
        return out


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_frozen_head_has_no_product_for_its_weight(frozen):
    model = policy_of()
    model.lm_head.weight.requires_grad_(not frozen)
    with HeadProducts() as mode:
        straight(model)
    rows = sum(batch.targets.numel() for batch in STEP.micro_batches)
    product = 2 * rows * VOCABULARY * model.config.hidden_size
    assert mode.found == {"logits": product, "states": product, "weight": 0 if frozen else product}


def test_under_an_adapter_the_head_is_frozen():
    model = to_policy(add_adapter(build_model(), LoraSettings(r=2, alpha=4)), "packed")
    with HeadProducts() as mode:
        straight(model)
    assert mode.found["weight"] == 0 and mode.found["logits"] > 0
