"""What every design is measured on: synthetic pairs with real length statistics, and the size of the model.

Lengths are log-normal, medians and spreads as measured on public preference sets: `chat` has long answers, `dialogue`
has long shared prompts and short answers. Prompts start with BOS and responses end with EOS, as rendered rows do, so
that a trainer which adds missing ones adds nothing and all designs see the same tokens. Standard library only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass

PAD, BOS, EOS, UNK = range(4)
FIRST_WORD = 4  # the ids below are special

# SimPO's settings for all designs: gamma = gamma_beta_ratio * beta = 0.55 * 2.5.
BETA, GAMMA = 2.5, 1.375
LEARNING_RATE, MAX_GRAD_NORM = 1e-6, 1.0


@dataclass(frozen=True)
class Pair:
    """Token ids of one prompt and its two responses; the prompt carries BOS, the responses EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Mix:
    """Log-normal token lengths: median and sigma of prompt and response, both capped to `cap` tokens together."""

    prompt_median: float
    prompt_sigma: float
    response_median: float
    response_sigma: float
    cap: int = 1024

    def shrunk(self, factor: int) -> Mix:
        """The same shape at 1/factor of the length, for self tests."""
        prompt, response = self.prompt_median / factor, self.response_median / factor
        return Mix(prompt, self.prompt_sigma, response, self.response_sigma, self.cap // factor)


MIXES = {"chat": Mix(120, 0.9, 300, 0.6), "dialogue": Mix(350, 0.6, 80, 0.7)}


@dataclass(frozen=True)
class ModelSize:
    """A Llama with as many key as query heads and an untied head."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    mlp: int = 1408
    vocab: int = 32_000

    @property
    def body_parameters(self) -> int:
        """Entries of the matrices every fed token is multiplied with; norms and the embedding table are not."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocab


def make_pairs(mix: Mix, count: int, vocab: int, seed: int) -> list[Pair]:
    """`count` pairs of random words; the same seed gives the same pairs."""
    rng = random.Random(seed)
    return [_random_pair(rng, *_draw_lengths(rng, mix), vocab) for _ in range(count)]


def exact_pairs(prompt: int, response: int, count: int, vocab: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of exactly these token lengths."""
    rng = random.Random(seed)
    return [_random_pair(rng, prompt, response, response, vocab) for _ in range(count)]


def useful_tokens(pairs: Iterable[Pair]) -> int:
    """Tokens that must pass the body: each prompt once, each response once."""
    return sum(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)


def response_tokens(pairs: Iterable[Pair]) -> int:
    """Tokens that must be predicted, so that must pass the head."""
    return sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)


def padded_tokens(pairs: list[Pair]) -> int:
    """Tokens of the usual layout: prompt repeated, all 2n sequences padded to the longest."""
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    return 2 * len(pairs) * longest


def to_json(pairs: Iterable[Pair]) -> list[dict]:
    return [asdict(pair) for pair in pairs]


def from_json(rows: Iterable[dict]) -> list[Pair]:
    return [Pair(**row) for row in rows]


def _draw_lengths(rng: random.Random, mix: Mix) -> tuple[int, int, int]:
    """Lengths of prompt, chosen and rejected; the prompt gives way where the cap is passed."""
    shortest_prompt = mix.cap // 64
    longest = mix.cap - shortest_prompt
    chosen, rejected = (
        max(4, min(longest, round(mix.response_median * math.exp(rng.gauss(0, mix.response_sigma))))) for _ in range(2)
    )
    prompt = round(mix.prompt_median * math.exp(rng.gauss(0, mix.prompt_sigma)))
    return max(shortest_prompt, min(prompt, mix.cap - max(chosen, rejected))), chosen, rejected


def _random_pair(rng: random.Random, prompt: int, chosen: int, rejected: int, vocab: int) -> Pair:
    def words(count: int) -> list[int]:
        return [rng.randrange(FIRST_WORD, vocab) for _ in range(count)]

    return Pair([BOS, *words(prompt - 1)], [*words(chosen - 1), EOS], [*words(rejected - 1), EOS])
