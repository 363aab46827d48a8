"""Which layer goes where; what a map may say. The layers themselves are moved in tests/spread."""

from __future__ import annotations

import pytest
import torch

from preftune.errors import RecipeError
from preftune.model.spread import device_of, even_places, named_places, spread
from tests.small import build_model

HOST, META = torch.device("cpu"), torch.device("meta")
GPUS = [torch.device("cuda", number) for number in range(4)]


def held(model, devices):
    """Bytes on each device, and layers."""
    places = even_places(model, devices)
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in model.model.layers]
    whole = sum(weight.nbytes for weight in model.parameters())
    found = dict.fromkeys(devices, 0)
    found[devices[0]] = whole - sum(layers)
    for place, size in zip(places, layers, strict=True):
        found[place] += size
    return places, list(found.values()), max(layers)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_devices_hold_about_as_many_bytes(count):
    model = build_model("llama", num_hidden_layers=24)
    places, sizes, layer = held(model, GPUS[:count])
    assert places == sorted(places, key=lambda place: place.index)
    assert set(places) == set(GPUS[:count])
    assert max(sizes) - min(sizes) <= layer


def test_a_first_device_full_of_embeddings_gets_no_layers():
    model = build_model("llama", vocab_size=50_000, num_hidden_layers=4)
    assert even_places(model, GPUS[:3]) == [GPUS[1]] * 2 + [GPUS[2]] * 2
    assert even_places(model, GPUS[:1]) == [GPUS[0]] * 4


def test_a_map_places_each_layer_by_its_longest_name():
    model = build_model("llama")
    given = {"": "cpu", "model.layers.1": "meta", "lm_head": "cpu"}
    assert named_places(model, given, HOST) == [HOST, META, HOST]
    given = {"model.embed_tokens": "cpu", "model.layers": "meta", "model.layers.0": "cpu"}
    assert named_places(model, given, HOST) == [HOST, META, META]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model.layers.0": "cpu"}, "has no device for model.layers.1"),
        (
            {"model.layer.0": "cpu"},
            r"names 'model.layer.0', which Llama.* does not have. Its layers are model.layers.0",
        ),
        ({"": "cpu", "lm_head": "meta"}, "puts lm_head on meta; embeddings, norm and head are kept on cpu"),
        ({"": "disk"}, "must hold numbers of GPUs, or cpu, found 'disk'"),
        ({"": 7}, "names cuda:7, and this process sees"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(given, said):
    with pytest.raises(RecipeError, match=said):
        named_places(build_model("llama"), given, HOST)


def test_a_device_is_a_number_or_a_word():
    assert device_of("cpu") == HOST
    with pytest.raises(RecipeError, match="'gpu'"):
        device_of("gpu")


def test_all_but_the_layers_stays_at_home():
    model = build_model("llama")
    spread(model, [HOST, META, META], HOST)
    away = {name for name, weight in model.named_parameters() if weight.device == META}
    assert away == {name for name, _ in model.named_parameters() if ".layers.1." in name or ".layers.2." in name}
