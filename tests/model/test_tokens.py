"""Log-probs, entropies and values token by token, against whole logits of one sequence at a time."""

import pytest
import torch

from preftune.data.pack import pack
from preftune.model.heads import to_scorer
from preftune.model.policy import to_policy
from preftune.model.tokens import TokenLogps, token_values
from tests.small import build_group, build_model

GROUPS = [build_group(5, 7), build_group(3, 1, row=2), build_group(9, 4, row=3)]


def slow_logits(model, group):
    ids = torch.tensor([group.prompt_ids + group.response_ids[0]])
    return model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].double()


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("road", ["packed", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_those_of_whole_logits_at_the_temperature(name, road, temperature):
    model = to_policy(build_model(name).eval(), road)
    found, entropy = model(batch=pack(GROUPS), read=TokenLogps(temperature, entropy=True))
    tables = [(slow_logits(model, group) / temperature).log_softmax(-1) for group in GROUPS]
    wanted = torch.cat(
        [t.gather(1, torch.tensor(g.response_ids[0])[:, None])[:, 0] for t, g in zip(tables, GROUPS, strict=True)]
    )
    assert torch.allclose(found.double(), wanted, atol=1e-4)
    assert torch.allclose(entropy.double(), torch.cat([-(t.exp() * t).sum(-1) for t in tables]), atol=1e-4)
    assert found.requires_grad and not entropy.requires_grad


def test_sums_of_tokens_are_the_log_probs_of_responses():
    model, batch = to_policy(build_model().eval()), pack(GROUPS)
    tokens = model(batch=batch, read=TokenLogps())
    sums = torch.zeros(3).index_add(0, batch.owner, tokens)
    assert torch.allclose(sums[:, None], model(batch=batch).sums, atol=1e-5)


@pytest.mark.parametrize("road", ["packed", "padded"])
def test_a_value_is_the_head_at_the_state_before_the_token(road, tmp_path):
    from preftune.model.heads import load_reward_model

    build_model().save_pretrained(tmp_path)
    scorer = load_reward_model(str(tmp_path)).eval()
    wanted = []
    for group in GROUPS:
        states = scorer.model(input_ids=torch.tensor([group.prompt_ids + group.response_ids[0]])).last_hidden_state[0]
        wanted.append(scorer.score(states[len(group.prompt_ids) - 1 : -1])[:, 0])
    found = to_scorer(scorer, road)(batch=pack(GROUPS), read=token_values)
    assert torch.allclose(found, torch.cat(wanted), atol=1e-5)
