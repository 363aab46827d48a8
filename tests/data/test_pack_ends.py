"""`pack(feed_last=True)`: the last token of every response is fed, and `ends` says where."""

from __future__ import annotations

import pytest

from preftune.data.pack import pack
from preftune.types import Origin, TokenizedGroup, Tree

ORIGIN = Origin("small", "train", 1)
PREFIX = TokenizedGroup([1, 2], [[3, 4], [3, 4, 5, 6]], ORIGIN)  # one response is the beginning of the other
RANKED = TokenizedGroup([7], [[8, 9], [5], [8, 6, 4]], ORIGIN)


def test_ends_point_at_the_last_tokens():
    batch = pack([PREFIX, RANKED], feed_last=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 8, 6, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 1, 1, 2, 3]]
    assert batch.trees == (Tree(0, 4, (0, 2)), Tree(6, 1, (2, 1, 3)))
    assert batch.ends.tolist() == [3, 5, 0, 8, 9, 12]  # 0 in the gap
    assert batch.input_ids[0][batch.ends].tolist() == [4, 6, 1, 9, 5, 4]
    assert batch.lengths.tolist() == [[2, 4, 0], [2, 1, 3]]


def test_the_states_that_predict_tokens_are_those_of_a_batch_without_last_tokens():
    for share in (True, False):
        fed = pack([PREFIX, RANKED], feed_last=True, share_prompt=share)
        unfed = pack([PREFIX, RANKED], share_prompt=share)
        assert unfed.ends is None
        assert fed.targets.tolist() == unfed.targets.tolist()
        assert fed.owner.tolist() == unfed.owner.tolist()
        for batch in (fed, unfed):
            assert batch.scored.numel() == batch.targets.numel()
        # the same token at the same position, wherever it lies in the row
        for field in ("input_ids", "position_ids"):
            read = [getattr(batch, field)[0][batch.scored].tolist() for batch in (fed, unfed)]
            assert read[0] == read[1]


def test_repeated_prompts_have_their_own_ends():
    batch = pack([PREFIX, RANKED], feed_last=True, share_prompt=False)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 5, 7, 8, 6, 4]]
    assert batch.ends.tolist() == [3, 9, 0, 12, 14, 18]


@pytest.mark.parametrize("feed_last", [True, False])
def test_the_length_that_is_planned_is_the_length_that_is_packed(feed_last):
    for group in (PREFIX, RANKED, TokenizedGroup([1], [[2], [2]], ORIGIN), TokenizedGroup([1, 1], [[2]], ORIGIN)):
        assert pack([group], feed_last=feed_last).tokens == group.packed_length(feed_last)


def test_ends_go_to_the_device_with_the_rest():
    moved = pack([PREFIX], feed_last=True).to("meta")
    assert moved.ends.device.type == "meta"
    assert pack([PREFIX]).to("meta").ends is None
