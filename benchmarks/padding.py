"""The usual layout of preference pairs, as the padded designs feed it: all chosen, then all rejected, padded right."""

from __future__ import annotations

import torch
from torch import Tensor
from workload import PAD, Pair

IGNORED = -100


def pad_pairs(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and labels (2n, L); prompts and padding are not scored."""
    sequences = [(pair.prompt, response) for side in ("chosen", "rejected") for pair, response in _sides(pairs, side)]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids = torch.full((len(sequences), width), PAD)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor(prompt + response)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return input_ids, attention_mask, labels


def sequence_lengths(pairs: list[Pair]) -> list[int]:
    """Tokens of each chosen and then each rejected sequence, prompt included."""
    return [
        len(pair.prompt) + len(response) for side in ("chosen", "rejected") for pair, response in _sides(pairs, side)
    ]


def _sides(pairs: list[Pair], side: str) -> list[tuple[Pair, list[int]]]:
    return [(pair, getattr(pair, side)) for pair in pairs]
