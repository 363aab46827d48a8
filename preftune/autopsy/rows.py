"""Which example of the data a trajectory is of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from preftune.autopsy.trajectories import Key, Trajectory
from preftune.recipe import Recipe
from preftune.train.data import tokenize_for
from preftune.train.margins import digest_of, source_of
from preftune.train.tokenizer import load_run_tokenizer
from preftune.types import Example, Origin

logger = logging.getLogger(__name__)


def find_examples(recipe: Recipe, pairs: Sequence[Trajectory], examples: Sequence[Example]) -> dict[Key, list[int]]:
    """The places in `examples` of each pair; several where a mixture reads a row more than once.

    A pair is found by its row and by the token ids of its responses, so rows that have changed are not taken for it.
    """
    rows = {pair.key[:2] for pair in pairs}
    places = [n for n, example in enumerate(examples) if (source_of(example.origin), example.origin.row) in rows]
    found: dict[Key, list[int]] = {}
    for place, digest in _digests(recipe, examples, places).items():
        key = (source_of(examples[place].origin), examples[place].origin.row, digest)
        found.setdefault(key, []).append(place)
    return found


def _digests(recipe: Recipe, examples: Sequence[Example], places: Sequence[int]) -> Mapping[int, int]:
    if not places:
        return {}
    tokenizer, _ = load_run_tokenizer(recipe)
    numbered = [replace(examples[place], origin=Origin("rows", "train", place)) for place in places]
    groups, _ = tokenize_for(replace(recipe, dedupe=False), tokenizer, numbered)
    return {group.origin.row: digest_of(group.response_ids) for group in groups}
