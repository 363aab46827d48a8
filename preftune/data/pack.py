"""Token groups -> one packed micro-batch: `[shared | branch 1 | branch 2 | ...]` per group, end to end, no padding.

The tokens that all responses of a group have in common (the prompt, and any common opening of the responses) stand in
the row once. Every branch continues their positions. The last token of a response predicts nothing and is left out,
unless a value head reads its state (`feed_last`). `unpack` goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from preftune.types import Feedback, PackedBatch, TokenizedGroup, Tree


def pack(
    groups: Sequence[TokenizedGroup],
    *,
    share_prompt: bool = True,
    weights: Sequence[float] | None = None,
    feed_last: bool = False,
) -> PackedBatch:
    """Lay `groups` out in one row.

    Args:
        groups: at least one; a group with fewer responses than the widest is marked in `feedback.valid`.
        share_prompt: False repeats the prompt before every response, each an independent sequence.
        weights: one a group, 1 by default; 0 makes a group count for nothing.
        feed_last: feed the last token of each response too, and say in `ends` where its state is.
    """
    row = _Row(feed_last)
    for group in groups:
        if share_prompt:
            row.add_shared(group)
        else:
            row.add_repeated(group)
    width = max(len(group.response_ids) for group in groups)
    lengths = [[len(ids) for ids in group.response_ids] for group in groups]
    scores = [list(group.scores) or [0.0] * len(group.response_ids) for group in groups]
    ends = [_widened(line, width, 0) for line in row.ends]
    lengths_GK = torch.tensor([_widened(line, width, 0) for line in lengths])
    return PackedBatch(
        input_ids=_joined(row.ids)[None],
        position_ids=_joined(row.positions)[None],
        trees=tuple(row.trees),
        scored=_joined(row.scored),
        targets=_joined([ids for group in groups for ids in group.response_ids]),
        owner=torch.from_numpy(np.repeat(np.arange(lengths_GK.numel()), lengths_GK.flatten().numpy())),
        lengths=lengths_GK,
        feedback=Feedback(
            scores=torch.tensor([_widened(line, width, 0.0) for line in scores], dtype=torch.float32),
            valid=lengths_GK > 0,
        ),
        weights=torch.tensor(list(weights) if weights is not None else [1.0] * len(groups)),
        row_weights=torch.tensor([group.weight for group in groups], dtype=torch.float32),
        rows_per_group=tuple(sum(line) for line in lengths),
        origins=tuple(group.origin for group in groups),
        ends=torch.tensor(ends).flatten() if feed_last else None,
    )


def unpack(batch: PackedBatch) -> list[TokenizedGroup]:
    """The groups of a micro-batch, as they were before they were packed."""
    ids, targets, lengths = batch.input_ids[0].tolist(), batch.targets.tolist(), batch.lengths.tolist()
    scores = batch.feedback.scores.tolist()
    known = None if batch.reference is None else batch.reference.sums.tolist()
    unfed = 0 if batch.ends is not None else 1
    groups, tree, target = [], 0, 0
    for number, origin in enumerate(batch.origins):
        counts = [count for count in lengths[number] if count]
        responses = []
        for count in counts:
            responses.append(targets[target : target + count])
            target += count
        start, shared, branches = batch.trees[tree]
        prompt = shared + sum(branches[:1]) - counts[0] + unfed
        tree += 1 if branches else len(counts)
        groups.append(
            TokenizedGroup(
                ids[start : start + prompt],
                responses,
                origin,
                scores=tuple(scores[number][: len(counts)]),
                reference=tuple(known[number][: len(counts)]) if known else (),
                weight=float(batch.row_weights[number]),
            )
        )
    return groups


class _Row:
    """The row while it grows, in pieces to be joined; `ends` has a line a group where the last tokens are fed."""

    def __init__(self, feed_last: bool) -> None:
        self.feed_last = feed_last
        self.length = 0
        self.ids: list[list[int]] = []
        self.positions: list[range] = []
        self.trees: list[Tree] = []
        self.scored: list[range] = []
        self.ends: list[list[int]] = []

    def add_shared(self, group: TokenizedGroup) -> None:
        shared, prompt = group.shared_length(self.feed_last), len(group.prompt_ids)
        start = self._feed(0, group.prompt_ids, group.response_ids[0][: shared - prompt])
        self.ends.append([])
        branches = []
        for response in group.response_ids:
            branch = self._fed(response)[shared - prompt :]
            at = self._feed(shared, branch)
            self._read(range(start + prompt - 1, start + shared), range(at, at + len(branch)))
            branches.append(len(branch))
        self.trees.append(Tree(start, shared, tuple(branches)))

    def add_repeated(self, group: TokenizedGroup) -> None:
        self.ends.append([])
        for response in group.response_ids:
            fed, prompt = self._fed(response), len(group.prompt_ids)
            start = self._feed(0, group.prompt_ids, fed)
            self._read(range(start + prompt - 1, start + prompt + len(fed)))
            self.trees.append(Tree(start, prompt + len(fed), ()))

    def _fed(self, response: list[int]) -> list[int]:
        return response if self.feed_last else response[:-1]

    def _feed(self, position: int, *pieces: list[int]) -> int:
        """Add tokens whose first has this position; gives its place in the row."""
        start, count = self.length, sum(map(len, pieces))
        self.ids += pieces
        self.positions.append(range(position, position + count))
        self.length += count
        return start

    def _read(self, *states: range) -> None:
        """Note the states from the prompt's last token to the end of a response: each predicts the token after it."""
        *earlier, last = filter(len, states)
        if self.feed_last:
            self.ends[-1].append(last[-1])
            last = last[:-1]
        self.scored += [*earlier, last]


def _joined(pieces: Sequence[Collection[int]]) -> Tensor:
    """(N,) int64; several times as fast as `torch.tensor` of a list."""
    count = sum(map(len, pieces))
    return torch.from_numpy(np.fromiter(chain.from_iterable(pieces), np.int64, count))


def _widened(line: list, width: int, fill: float) -> list:
    return line + [fill] * (width - len(line))
