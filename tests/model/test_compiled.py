"""Compiled decoder layers: how often something is compiled, and where the plain ones run.

The graphs are cut and guarded as under any backend and run as they are traced (`eager`), which keeps these quick.
`tests/slow/test_compiled.py` has their derivatives and the generated code.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from preftune.data.pack import pack
from preftune.errors import RecipeError
from preftune.model import attention
from preftune.model.compiled import compile_layers
from preftune.model.policy import to_policy
from tests.model.test_equality import loss_of
from tests.small import build_groups, build_model, gradients, lengths_of, worst_gradient_gap

BATCHES = [build_groups(4, seed=seed, longest=9 + 5 * seed) for seed in range(6)]
LOGPS, GRADIENTS = 1e-5, 1e-4  # nats a token, and relative; as packed rows against the slow way, in float32


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def answers(model, batches, fused=True):
    """Mean log-probs and gradients of each batch."""
    found = []
    for groups in batches:
        lengths = lengths_of(groups)
        model.zero_grad()
        if fused:

            def group_loss(sums, some, lengths=lengths):
                return loss_of(sums / lengths[some])

            loss, sums = model(batch=pack(groups), group_loss=group_loss)
            means = sums / lengths
        else:
            means = model(batch=pack(groups)).means
            loss = loss_of(means)
        loss.backward()
        found.append((means.detach(), gradients(model)))
    return found


def compare(found, wanted, logps=LOGPS, relative=GRADIENTS):
    for (means, gradient), (wanted_means, wanted_gradient) in zip(found, wanted, strict=True):
        assert (means - wanted_means).abs().max() <= logps
        assert worst_gradient_gap(gradient, wanted_gradient) <= relative


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("dense", [0, 10**9], ids=["one by one", "dense blocks"])
def test_new_lengths_compile_nothing(monkeypatch, dense):
    monkeypatch.setattr(attention, "DENSE_MEAN_TOKENS", dense)
    model = to_policy(build_model("llama"), "packed")
    wanted = answers(model, BATCHES)
    assert compile_layers(model, "eager") == 3
    found = answers(model, BATCHES[:1])
    first = graphs()
    found += answers(model, BATCHES[1:])
    compare(found, wanted)
    assert first == graphs() <= 5  # one for the check, and the parts of a layer around attention; all layers share them


def test_checkpointed_layers_are_compiled_too():
    model = to_policy(build_model("llama"), "packed")
    wanted = answers(model, BATCHES)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compile_layers(model, "eager")
    compare(answers(model, BATCHES), wanted)
    assert 1 < graphs() <= 10


def test_prompts_are_answered_by_plain_layers(tmp_path):
    model = to_policy(build_model("llama"), "packed").eval()
    ids = torch.tensor([[5, 9, 17]])
    wanted = model.generate(ids, max_new_tokens=6, do_sample=False)
    names = list(model.state_dict())
    compile_layers(model, "eager")
    before = graphs()
    assert model.generate(ids, max_new_tokens=6, do_sample=False).equal(wanted)
    assert model(input_ids=ids).logits.shape == (1, 3, 211)
    assert graphs() == before
    model.train()
    answers(model, BATCHES[:1])
    assert graphs() > before  # and the layers are compiled again where they learn
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert type(build_model("llama")).from_pretrained(tmp_path).lm_head.weight.equal(model.lm_head.weight)


def test_a_machine_that_cannot_compile_is_told_at_once():
    model = to_policy(build_model("llama"), "packed")
    with pytest.raises(RecipeError, match="'torch_compile' true cannot run on this machine"):
        compile_layers(model, "no_such_backend")
