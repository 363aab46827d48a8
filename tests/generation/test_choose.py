"""Tokens are drawn from the distribution that top-k, top-p and temperature define."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from preftune.errors import ModelError
from preftune.generation.choose import _invert, choose, random_numbers
from preftune.generation.request import Sampling


@dataclass
class Row:
    sampling: Sampling
    draw: Any


def warped(logits, sampling):
    """Probabilities as transformers makes them."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 1.0}, {"top_p": 0.9}, {"top_p": 0.05}, {"top_k": 7, "top_p": 1.0}, {"top_k": 40, "top_p": 0.6}],
)
def test_frequencies_are_those_of_transformers(settings):
    sampling, draws = Sampling(temperature=0.7, **settings), 20_000
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(0)) * 2
    row = Row(sampling, random_numbers([1, 2], 3))

    tokens = choose(logits.expand(draws, -1), [row] * draws).tokens

    wanted = warped(logits, sampling)[0]
    counts = torch.bincount(torch.tensor(tokens), minlength=600)
    assert counts[wanted == 0].sum() == 0
    spread = (wanted * (1 - wanted) / draws).sqrt()
    assert ((counts / draws - wanted).abs() <= 5 * spread + 4 / draws).all()  # the rare ones: a few draws


def test_rows_with_different_settings_do_not_disturb_each_other():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    settings = [Sampling(temperature=0), Sampling(), Sampling(top_k=5), Sampling(temperature=2.0, top_p=0.3)]

    def rows(places):
        return [Row(settings[i], random_numbers([i], 0)) for i in places]

    together = choose(logits, rows(range(4))).tokens

    assert together[0] == logits[0].argmax()
    assert together == [choose(logits[i : i + 1], rows([i])).tokens[0] for i in range(4)]


def test_a_number_falls_into_the_token_whose_share_it_is():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]])
    found = [_invert(probs, [u]).item() for u in (0.0, 0.49, 0.5, 0.74, 0.75, 0.999999)]
    assert found == [1, 1, 3, 3, 4, 4]


def test_shares_are_found_over_several_blocks():
    probs = torch.full((3, 1000), 1e-3)
    assert _invert(probs, [0.0005, 0.5005, 0.9995]).tolist() == [0, 500, 999]


def test_numbers_are_a_function_of_prompt_and_seed():
    def first(prompt, seed):
        draw = random_numbers(prompt, seed)
        return [draw() for _ in range(3)]

    streams = [first(prompt, seed) for prompt, seed in itertools.product(([1, 2], [1, 3]), (0, 1, -1))]
    assert len({tuple(stream) for stream in streams}) == 6
    assert streams[0] == first([1, 2], 0)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0}, {"top_logprobs": -1}],
)
def test_a_setting_out_of_its_range_is_refused(wrong):
    with pytest.raises(ModelError, match=next(iter(wrong))):
        Sampling(**wrong)
