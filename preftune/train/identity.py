"""What data and weights are, as a hash of their content."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from preftune.model.sharding import whole
from preftune.types import TokenizedGroup


def hash_groups(groups: Iterable[TokenizedGroup]) -> str:
    """Of all token ids, scores and weights, with the lengths that tell them apart.

    Tokenizer, template and truncation enter by the ids.
    """
    digest = hashlib.sha256()
    for group in groups:
        parts = [group.prompt_ids, *group.response_ids]
        digest.update(array("q", [len(parts), *map(len, parts)]).tobytes())
        for ids in parts:
            digest.update(array("q", ids).tobytes())
        digest.update(array("d", [*group.scores, group.weight]).tobytes())
    return digest.hexdigest()


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values. Of sharded weights every rank must ask."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = whole(weights[name]).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
