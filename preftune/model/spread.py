"""The decoder layers of one model on several devices, which compute one after the other (`device_map`).

Layers alone are spread, in order; embeddings, final norm and head stay at home, the first device, where batches are and
losses are made. So the head's log-probs, tied weights and everything behind them are those of a model on one device,
and what travels is one tensor of hidden states from device to device, and home at the end. Each layer moves what it is
called with to its own device, also when a checkpointed one runs again in backward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from preftune.errors import RecipeError
from preftune.model.policy import layers_of
from preftune.model.value_head import base_of


def spread(model: Any, places: Sequence[torch.device], home: torch.device) -> None:
    """Put the layers of a transformers or PEFT model on `places`, one a layer, and all else on `home`; in place.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    base = base_of(model)
    layers = layers_of(base)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(lambda tensor: tensor.to(home), recurse=False)
    for layer, place in zip(layers, places, strict=True):
        layer.to(place)
        layer.register_forward_pre_hook(_bring, with_kwargs=True)
    at_home = base.get_input_embeddings()
    layers[-1].register_forward_hook(lambda _layer, _given, output: send_to_device(output, _place_of(at_home)))


def _bring(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """To where the layer lies now: a model that is moved to one device later works there."""
    place = _place_of(layer)
    return send_to_device(args, place), send_to_device(kwargs, place, skip_keys="past_key_values")


def _place_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def even_places(model: Any, devices: Sequence[torch.device]) -> list[torch.device]:
    """For each layer one of `devices`, so that all hold about as many bytes of weights; the first also has all else."""
    sizes = [_bytes(layer) for layer in layers_of(base_of(model))]
    rest = _bytes(model) - sum(sizes)
    share = (rest + sum(sizes)) / len(devices)
    if rest >= share and len(devices) > 1:  # embeddings and head alone are more than a share
        devices, rest = devices[1:], 0
        share = sum(sizes) / len(devices)
    places, filled = [], float(rest)
    for size in sizes:
        places.append(devices[min(int((filled + size / 2) / share), len(devices) - 1)])
        filled += size
    return places


def named_places(model: Any, given: Mapping[str, int | str], home: torch.device) -> list[torch.device]:
    """For each layer the device that a map of module names has for it, by its longest name: `{model.layers.7: 1}`.

    Raises:
        RecipeError: a layer is not in it, a name is no module, a device is not there, or what is no layer is to lie
            elsewhere than `home`.
    """
    base = base_of(model)
    modules = {id(module): name for name, module in base.named_modules()}
    layers = [modules[id(layer)] for layer in layers_of(base)]
    for name, device in given.items():
        if name and name not in modules.values():
            raise RecipeError(
                f"'device_map' names {name!r}, which {type(base).__name__} does not have. Its layers are "
                f"{layers[0]} to {layers[-1]}."
            )
        holds_layers = any(_within(layer, name) or _within(name, layer) for layer in layers)
        if not holds_layers and device_of(device) != home:
            raise RecipeError(
                f"'device_map' puts {name} on {device_of(device)}; embeddings, norm and head are kept on {home}, "
                "where batches are. Leave it out, or set it to that."
            )
    places = []
    for layer in layers:
        found = [name for name in given if _within(layer, name)]
        if not found:
            raise RecipeError(f"'device_map' has no device for {layer}. Name every layer, or set device_map: auto.")
        places.append(device_of(given[max(found, key=len)]))
    return places


def _within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def device_of(given: int | str) -> torch.device:
    """The device of a map's value: a number is one of the GPUs that this process sees.

    Raises:
        RecipeError: it is none, or not there.
    """
    if isinstance(given, int) or str(given).isdecimal():
        given = f"cuda:{given}"
    if not re.fullmatch(r"[a-z]+(:\d+)?", str(given)) or given == "disk":
        raise RecipeError(f"'device_map' must hold numbers of GPUs, or cpu, found {given!r}.")
    try:
        device = torch.device(given)
    except RuntimeError:
        raise RecipeError(f"'device_map' must hold numbers of GPUs, or cpu, found {given!r}.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise RecipeError(f"'device_map' names {device}, and this process sees {count} GPUs.")
        device = torch.device("cuda", device.index or 0)
    return device


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())
