"""Several adapters in one pass of the decoder, held against each adapted model by itself."""

import pytest
import torch

from preftune.data.pack import pack
from preftune.errors import ModelError
from preftune.model.lora import LoraSettings, add_adapter
from preftune.model.policy import states_of, to_policy
from preftune.model.stacked import StackedDecoder, check_stackable, share_base
from tests.small import build_groups, build_model

BATCH = pack(build_groups(5))


def candidates(name: str = "llama", road: str = "auto", count: int = 3, targets: str = "ALL"):
    """Policies over one base, with adapters that all differ."""
    first = add_adapter(build_model(name), LoraSettings(r=4, alpha=8, target_modules=targets))
    models = [first, *(share_base(first) for _ in range(count - 1))]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
        to_policy(model, road)
    return models


def adapter_of(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_copy_has_its_own_adapter_and_the_same_base():
    one, two = candidates(count=2)
    pairs = list(zip(one.named_parameters(), two.parameters(), strict=True))
    assert all((mine is yours) == ("lora_" not in name) for (name, mine), yours in pairs)
    assert not torch.equal(*(next(iter(adapter_of(model).values())) for model in (one, two)))


@pytest.mark.parametrize(
    "name, road", [("llama", "packed"), ("llama", "padded"), ("gpt2", "packed"), ("gemma2", "packed")]
)
def test_states_and_gradients_are_those_of_each_alone(name, road):
    models = candidates(name, road)
    slopes = torch.randn(3, BATCH.targets.shape[0], 32, generator=torch.Generator().manual_seed(0))
    alone = []
    for model, slope in zip(models, slopes, strict=True):
        states = states_of(model.get_base_model(), BATCH)
        (states * slope).sum().backward()
        alone.append((states.detach(), {key: weight.grad for key, weight in adapter_of(model).items()}))
        model.zero_grad(set_to_none=True)
    states = StackedDecoder(models).states([0, 1, 2], BATCH)
    (states * slopes).sum().backward()
    for model, found, (wanted, gradients) in zip(models, states, alone, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for key, weight in adapter_of(model).items():
            torch.testing.assert_close(weight.grad, gradients[key], atol=1e-4, rtol=1e-4)


def test_some_of_them_pass_by_themselves():
    models = candidates()
    decoder = StackedDecoder(models)
    everybody = decoder.states([0, 1, 2], BATCH)
    torch.testing.assert_close(decoder.states([2, 0], BATCH), everybody[[2, 0]], atol=1e-5, rtol=1e-5)


def test_an_adapter_that_is_no_number_does_not_reach_the_others():
    models = candidates()
    decoder = StackedDecoder(models)
    wanted = decoder.states([0, 1, 2], BATCH).detach()
    with torch.no_grad():
        next(iter(adapter_of(models[1]).values())).fill_(float("nan"))
    states = decoder.states([0, 1, 2], BATCH)
    states.sum().backward()
    assert states[1].isnan().all()
    torch.testing.assert_close(states[[0, 2]].detach(), wanted[[0, 2]])
    assert all(weight.grad.isfinite().all() for number in (0, 2) for weight in adapter_of(models[number]).values())


def test_lora_on_embeddings_is_refused():
    model = add_adapter(build_model(), LoraSettings(r=4, alpha=8, target_modules="EMBEDDING"))
    with pytest.raises(ModelError, match=r"embed_tokens' is none"):
        check_stackable(model)


def test_what_is_trained_whole_beside_the_adapters_is_refused():
    """As the rows of new tokens are: each run would have its own, and the pass has those of one."""
    settings = LoraSettings(r=4, alpha=8, target_modules="ALL", modules_to_save=["embed_tokens"])
    with pytest.raises(ModelError, match=r"embed_tokens.*is trained whole.*add_template_tokens: false"):
        check_stackable(add_adapter(build_model(), settings))
    check_stackable(add_adapter(build_model(), LoraSettings(r=4, alpha=8, target_modules="ALL")))
