"""The packed, prompt-shared road against the slow way, for many architectures: log-probs and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from preftune.data.pack import pack
from preftune.model import attention
from preftune.model.policy import to_policy
from tests.small import (
    ARCHITECTURES,
    build_group,
    build_groups,
    build_model,
    gradients,
    lengths_of,
    slow_logps,
    worst_gradient_gap,
)

LOGP_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # nats per token
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative
SHAPES = {
    "ordinary pair": build_group(30, 20, 33),
    "common opening": build_group(9, 12, 18, opening=5),
    "prompt of one token": build_group(1, 6, 9),
    "responses of one token": build_group(7, 1, 1),
    "prompt and responses of one token": build_group(1, 1, 1),
    "long prompt, short answers": build_group(60, 1, 4),
    "longer than a block of queries": build_group(100, 50, 90),
}
alone = build_group(8, 10)
longer = [*alone.response_ids[0], 7, 9, 11]
SHAPES["chosen is a prefix of rejected"] = replace(alone, response_ids=[alone.response_ids[0], longer])
SHAPES["rejected is a prefix of chosen"] = replace(alone, response_ids=[longer, alone.response_ids[0]])


def loss_of(means: torch.Tensor) -> torch.Tensor:
    """A loss that mixes all responses of a group and treats each differently."""
    weights = torch.arange(1, means.shape[1] + 1, dtype=means.dtype, device=means.device)
    return F.softplus((means * weights).sum(1) / weights.sum()).sum()


def check(model, groups, *, share_prompt=True, fused=False, road="packed"):
    dtype = model.dtype
    lengths = lengths_of(groups)
    model.zero_grad()
    wanted = slow_logps(model, groups) / lengths
    loss_of(wanted).backward()
    wanted_gradients = gradients(model)
    model.zero_grad()
    to_policy(model, road)
    assert model.road == road
    batch = pack(groups, share_prompt=share_prompt)
    if fused:
        loss, sums = model(batch=batch, group_loss=lambda sums, some: loss_of(sums / lengths[some]))
        means = sums / lengths
    else:
        means = model(batch=batch).means
        loss = loss_of(means)
    loss.backward()
    assert (means - wanted).abs().max() <= LOGP_TOLERANCE[dtype]
    assert worst_gradient_gap(gradients(model), wanted_gradients) <= GRADIENT_TOLERANCE[dtype]


@pytest.fixture(params=["one by one", "dense blocks"])
def cpu_road(request, monkeypatch):
    """Both CPU roads, whatever the length of the groups."""
    monkeypatch.setattr(attention, "DENSE_MEAN_TOKENS", 0 if request.param == "one by one" else 10**9)


@pytest.mark.parametrize("fused", [False, True], ids=["recomputed", "fused"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_slow_for_every_architecture(name, fused, cpu_road):
    check(build_model(name), list(SHAPES.values()), fused=fused)


@pytest.fixture
def double_all_through(monkeypatch):
    """The models' norms and softmax go through float32 even in a float64 model; keep them in float64 here."""
    to, softmax = torch.Tensor.to, F.softmax

    def keep_double(tensor, *args, **kwargs):
        if tensor.dtype == torch.float64 and torch.float32 in (*args, *kwargs.values()):
            return tensor
        return to(tensor, *args, **kwargs)

    def double_softmax(scores, *args, dtype=None, **kwargs):
        return softmax(scores, *args, dtype=scores.dtype if scores.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", keep_double)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: to(tensor, torch.float64))
    monkeypatch.setattr(F, "softmax", double_softmax)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2", "qwen3"])
def test_packed_equals_slow_in_float64(name, cpu_road, double_all_through):
    check(build_model(name, torch.float64), list(SHAPES.values()), fused=True)
    check(build_model(name, torch.float64), list(SHAPES.values()), fused=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_slow_for_every_shape_alone(shape, cpu_road):
    check(build_model("llama"), [SHAPES[shape]], fused=True)


@pytest.mark.parametrize("responses", [1, 2, 4])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_packed_equals_slow_for_any_number_of_responses(name, responses, cpu_road):
    check(build_model(name), build_groups(5, responses=responses), fused=True)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2"])
def test_repeated_prompts_and_the_padded_road_give_the_same(name):
    check(build_model(name), list(SHAPES.values()), share_prompt=False, fused=True)
    check(build_model(name), list(SHAPES.values()), road="padded", fused=True)
    check(build_model(name), list(SHAPES.values()), road="padded")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(name, cpu_road):
    model = build_model(name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    check(model, list(SHAPES.values()), fused=True)


def test_multi_query_attention(cpu_road):
    check(build_model("llama", num_key_value_heads=1), list(SHAPES.values()))


def test_bfloat16_stays_near_float32():
    groups = build_groups(6)
    model = to_policy(build_model("llama"), "packed")
    batch = pack(groups)
    exact = model(batch=batch).means
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch=batch)
    assert rounded.sums.dtype == torch.float32
    assert (rounded.means - exact).abs().max() < 2e-2
    low = to_policy(build_model("llama").to(torch.bfloat16), "packed")(batch=batch)
    assert low.sums.dtype == torch.float32
    assert (low.means - exact).abs().max() < 3e-2


def test_a_group_with_fewer_responses_is_marked_and_scored():
    groups = [build_group(5, 4, 6, 3), build_group(7, 5, 2)]
    model = to_policy(build_model("llama"), "packed")
    for road in ("packed", "padded"):
        model.road = road
        model.set_attn_implementation(attention.NAME if road == "packed" else "eager")
        out = model(batch=pack(groups))
        assert out.lengths.tolist() == [[4, 6, 3], [5, 2, 0]]
        assert out.sums[1, 2] == 0
        wanted = slow_logps(build_model("llama"), [groups[1]])
        assert torch.allclose(out.sums[1, :2], wanted[0], atol=1e-4)
