"""Reward models: packed and padded scores against the model's own forward pass, one sequence at a time."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model import attention
from preftune.model.heads import to_scorer
from tests.small import ARCHITECTURES, SHAPE, build_group, build_groups, gradients, worst_gradient_gap

SCORE_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative
NAMES = ["llama", "llama-tied", "mistral-window", "qwen2", "gemma2", "gpt2", "gpt-oss"]

GROUPS = {
    "ordinary pair": build_group(30, 20, 33),
    "common opening": build_group(9, 12, 18, opening=5),
    "one token each": build_group(1, 1, 1),
    "long prompt, short answers": build_group(60, 1, 4),
}
alone = build_group(8, 10)
longer = [*alone.response_ids[0], 7, 9, 11]
GROUPS["chosen is a prefix of rejected"] = replace(alone, response_ids=[alone.response_ids[0], longer])
GROUPS["rejected is a prefix of chosen"] = replace(alone, response_ids=[longer, alone.response_ids[0]])
GROUPS["the same response twice"] = replace(alone, response_ids=[longer, longer])
PAIRS = list(GROUPS.values())


def build_classifier(name="llama", dtype=torch.float32, seed=0, **changes):
    """A random reward model with eager attention, no dropout, and weights large enough that scores differ."""
    kind, extra = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**SHAPE, **extra, "num_labels": 1, **changes})
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.1)
            elif "sink" in parameter_name:
                parameter.normal_(0, 1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(dtype).train()


def slow_scores(model, groups):
    """One number a response, in order: each sequence alone through the model's own forward pass."""
    ids = [group.prompt_ids + response for group in groups for response in group.response_ids]
    return torch.stack([model(input_ids=torch.tensor([one]), use_cache=False).logits[0, 0] for one in ids])


def loss_of(scores):
    """A loss that treats every score differently."""
    weights = torch.linspace(1, 2, scores.numel(), dtype=scores.dtype)
    return (weights * torch.tanh(scores)).sum()


def check(model, groups, *, road="packed", share_prompt=True):
    dtype = model.dtype
    wanted = slow_scores(model, groups)
    assert wanted.std() > 0.05
    loss_of(wanted).backward()
    wanted_gradients = gradients(model)
    model.zero_grad()
    to_scorer(model, road)
    assert model.road == road
    out = model(batch=pack(groups, share_prompt=share_prompt, feed_last=True))
    found = out.sums[out.lengths > 0]
    loss_of(found).backward()
    assert (found - wanted).abs().max() <= SCORE_TOLERANCE[dtype]
    assert worst_gradient_gap(gradients(model), wanted_gradients) <= GRADIENT_TOLERANCE[dtype]
    return out


@pytest.fixture(params=["flash segments", "dense blocks"])
def cpu_road(request, monkeypatch):
    """Both CPU roads, whatever the length of the groups."""
    monkeypatch.setattr(attention, "DENSE_MEAN_TOKENS", 0 if request.param == "flash segments" else 10**9)


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


@pytest.mark.parametrize("name", NAMES)
def test_packed_scores_equal_one_sequence_at_a_time(name, cpu_road):
    check(build_classifier(name), PAIRS)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral-window", "gemma2", "gpt2"])
def test_packed_scores_equal_one_sequence_at_a_time_in_float64(name, cpu_road, double_all_through):
    check(build_classifier(name, torch.float64), PAIRS)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(name, cpu_road):
    model = build_classifier(name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    check(model, PAIRS)


@pytest.mark.parametrize("shape", GROUPS)
def test_every_shape_alone(shape, cpu_road):
    model = to_scorer(build_classifier(), "packed")
    found = model(batch=pack([GROUPS[shape]], feed_last=True)).sums.flatten()
    assert torch.allclose(found, slow_scores(build_classifier(), [GROUPS[shape]]), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gpt2"])
def test_the_padded_road_and_repeated_prompts_give_the_same(name, double_all_through):
    check(build_classifier(name, torch.float64), PAIRS, road="padded")
    check(build_classifier(name, torch.float64), PAIRS, road="padded", share_prompt=False)
    check(build_classifier(name, torch.float64), PAIRS, share_prompt=False)


@pytest.mark.parametrize("road", ["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_gaps_of_ranked_groups_score_0_and_have_no_gradient(name, road, double_all_through):
    groups = [build_group(5, 4, 6, 3), build_group(7, 5), build_group(6, 2, 2, 9, 4), build_group(1, 1, 1)]
    out = check(build_classifier(name, torch.float64), groups, road=road)
    gaps = out.lengths == 0
    assert gaps.sum() == 6
    assert (out.sums[gaps] == 0).all()
    assert out.lengths.tolist() == [[4, 6, 3, 0], [5, 0, 0, 0], [2, 2, 9, 4], [1, 1, 0, 0]]


def test_a_gap_gives_no_gradient():
    model = to_scorer(build_classifier(), "packed")
    out = model(batch=pack([build_group(5, 4, 6, 3), build_group(7, 5)], feed_last=True))
    out.sums[1, 1:].sum().backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_scores_are_float32_whatever_the_weights_and_under_autocast():
    groups = build_groups(5)
    batch = pack(groups, feed_last=True)
    exact = slow_scores(build_classifier(), groups).view(5, 2)
    low = to_scorer(build_classifier(dtype=torch.bfloat16))
    assert low.road == "packed"
    assert low(batch=batch).sums.dtype == torch.float32
    assert (low(batch=batch).sums - exact).abs().max() < 0.1
    model = to_scorer(build_classifier())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch=batch).sums
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1
    assert len(rounded.unique()) == 10


def test_a_scorer_is_still_the_model_it_was(tmp_path):
    model = build_classifier().eval()
    names, ids = list(model.state_dict()), torch.tensor([[1, 5, 9, 14], [1, 7, 3, 0]])
    before = model(input_ids=ids).logits
    to_scorer(to_scorer(model))
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert list(model.state_dict()) == names
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config._attn_implementation == attention.NAME
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_dropout_in_attention_is_seen_by_the_preflight(caplog):
    model = build_classifier(attention_dropout=0.1)
    with caplog.at_level(logging.WARNING):
        assert to_scorer(model).road == "padded"
    assert "takes the padded road: its attention dropout is on" in caplog.text
    with pytest.raises(ModelError, match="road: packed cannot serve LlamaForSequenceClassification"):
        to_scorer(model, "packed")
    with pytest.raises(ModelError, match="'road' must be one of auto, packed, padded, found 'fast'"):
        to_scorer(model, "fast")


def test_the_preflight_sees_a_difference_that_a_head_of_zeros_would_hide(monkeypatch):
    from preftune.model import heads

    model = build_classifier()
    torch.nn.init.zeros_(model.score.weight)
    honest = heads.packed_states
    monkeypatch.setattr(heads, "packed_states", lambda *args: honest(*args) * 1.1)
    assert to_scorer(model).road == "padded"


def test_what_is_no_reward_model_is_refused():
    shape = {**SHAPE, "num_labels": 1}
    encoder = transformers.AutoModelForSequenceClassification.from_config(transformers.BertConfig(**shape))
    with pytest.raises(ModelError, match="BertForSequenceClassification has no linear 'score' head"):
        to_scorer(encoder)
    with pytest.raises(ModelError, match="no linear 'score' head with one output"):
        to_scorer(build_classifier(num_labels=3))


def test_a_model_that_pools_otherwise_is_refused():
    class FirstToken(transformers.LlamaForSequenceClassification):
        def forward(self, input_ids=None, **kwargs):
            states = self.model(input_ids, **kwargs).last_hidden_state
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.score(states[:, 0]))

    model = build_classifier()
    model.__class__ = FirstToken
    with pytest.raises(ModelError, match="FirstToken does more than reading one linear head at the last token"):
        to_scorer(model)
