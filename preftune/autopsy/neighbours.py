"""Pairs -> which of them contradict their neighbours: near-duplicates with the opposite preference.

Texts are sets of words and of two words in a row, in lower case; a Chinese, Japanese or Korean character and any other
sign is a word. Each counts by its rarity, log(texts / texts that have it). What a pair prefers is a vector: + for what
only the chosen response has, - for what only the rejected one has. Two pairs are neighbours where their prompts have a
cosine of at least 0.5, and their preferences one of at least 0.5 (agreeing) or at most -0.5 (against). The same pair
with its responses exchanged has exactly -1. A pair contradicts its neighbours where some are against it and their
cosines add up to 0 or less: of two that contradict each other both, of one against many the one.

Vectors are hashed into 2048 places with random signs, which moves a cosine by about 0.02.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

ALIKE = 0.5
PLACES = 2048
BUCKETS = 2**18  # in which texts that have a word are counted
BLOCK = 512  # pairs that are held against all others at a time
_WORD = re.compile(r"[㐀-鿿豈-﫿぀-ヿ가-힣]|[^\W_㐀-鿿豈-﫿぀-ヿ가-힣]+|[^\w\s]")


@dataclass(frozen=True)
class Texts:
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Contradiction:
    """other: the neighbour that is most against the pair, by its place; cosine: of the two preferences.

    exact: the same prompt with the responses exchanged; against, agreeing: how many neighbours.
    """

    other: int
    cosine: float
    exact: bool
    against: int
    agreeing: int


def find_contradictions(pairs: Sequence[Texts]) -> dict[int, Contradiction]:
    """Of the pairs that contradict their neighbours, by their place; both of two that have no others."""
    if len(pairs) < 2:
        return {}
    prompts, chosen, rejected = (
        [_words(text) for text in texts]
        for texts in ([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
    )
    rarity = _rarity([*chosen, *rejected])
    preferences = _unit([
        _vector(one, rarity, less=other) - _vector(other, rarity, less=one)
        for one, other in zip(chosen, rejected, strict=True)
    ])  # fmt: skip
    asked = _rarity(prompts)
    subjects = _unit([_vector(words, asked) for words in prompts])
    same = torch.tensor(list(_numbered([pair.prompt for pair in pairs])))
    found: dict[int, Contradiction] = {}
    for start in range(0, len(pairs), BLOCK):
        cosines = preferences[start : start + BLOCK] @ preferences.T  # (B, N)
        places, others = (cosines.abs() >= ALIKE).nonzero(as_tuple=True)
        own = places + start
        asked_alike = (subjects[start : start + BLOCK] @ subjects.T)[places, others] >= ALIKE
        alike = (same[own] == same[others]) | asked_alike
        near = alike & (own != others)
        values = cosines[places[near], others[near]]
        found |= _opposed(pairs, own[near].tolist(), others[near].tolist(), values.tolist())
    return found


def _opposed(
    pairs: Sequence[Texts], own: Sequence[int], others: Sequence[int], cosines: Sequence[float]
) -> dict[int, Contradiction]:
    near: dict[int, list[tuple[float, int]]] = {}
    for one, other, cosine in zip(own, others, cosines, strict=True):
        near.setdefault(one, []).append((cosine, other))
    found = {}
    for one, neighbours in near.items():
        against = sum(cosine < 0 for cosine, _ in neighbours)
        if against and sum(cosine for cosine, _ in neighbours) <= 1e-3:  # rounding
            cosine, other = min(neighbours, key=lambda item: (not _exchanged(pairs[one], pairs[item[1]]), item))
            exact = _exchanged(pairs[one], pairs[other])
            found[one] = Contradiction(other, cosine, exact, against, len(neighbours) - against)
    return found


def _exchanged(one: Texts, other: Texts) -> bool:
    return one == Texts(other.prompt, other.rejected, other.chosen)


def _words(text: str) -> np.ndarray:
    """The hashes of its words and of its two words in a row, each once."""
    words = _WORD.findall(text.lower())
    grams = [*words, *(f"{one} {two}" for one, two in pairwise(words))]
    return np.unique(np.fromiter((zlib.crc32(gram.encode()) for gram in grams), np.uint32, len(grams)))


def _rarity(texts: Sequence[np.ndarray]) -> np.ndarray:
    counts = np.zeros(BUCKETS)
    for words in texts:
        counts[np.unique(words % BUCKETS)] += 1
    return np.log((1 + len(texts)) / np.maximum(counts, 1))


def _vector(words: np.ndarray, rarity: np.ndarray, less: np.ndarray | None = None) -> np.ndarray:
    """(PLACES,) float32 of the words, but for those of `less`."""
    words = words if less is None else np.setdiff1d(words, less, assume_unique=True)
    # the low bits say how often a word is counted, the others where it stands and with which sign
    mixed = words * np.uint32(2654435761)
    signs = np.where(mixed >> np.uint32(31), 1.0, -1.0)
    places = (mixed >> np.uint32(8)) % PLACES
    return np.bincount(places, signs * rarity[words % BUCKETS], PLACES).astype(np.float32)


def _unit(vectors: Sequence[np.ndarray]) -> torch.Tensor:
    """(N, PLACES) of length 1, or 0."""
    stacked = torch.from_numpy(np.stack(vectors))
    return stacked / stacked.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _numbered(texts: Sequence[str]) -> Sequence[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]
