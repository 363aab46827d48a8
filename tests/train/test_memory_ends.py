"""Out of memory: the budget of tokens shrinks, and the run is the one that had the smaller budget."""

from __future__ import annotations

import pytest
import torch

from preftune.data.plan import Cut
from preftune.errors import TrainingError
from preftune.train.redo import recut
from preftune.train.step import Packing, build_step
from tests.small import build_group, build_groups
from tests.train.test_trainer import GROUPS, build_trainer, losses_of


def limited(trainer, tokens, seen=None):
    """Memory that ends at these packed tokens, in the forward pass that has them."""
    body = trainer.model.forward

    def forward(*arguments, batch=None, **more):
        if batch is not None and batch.tokens > tokens:
            raise torch.OutOfMemoryError(f"Tried to allocate {batch.tokens} tokens")
        if batch is not None and seen is not None:
            seen.append(batch.tokens)
        return body(*arguments, batch=batch, **more)

    trainer.model.forward = forward
    return trainer


def weights(trainer):
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


@pytest.mark.parametrize("name", ["simpo", "aot", "bco_pair"])
def test_the_run_is_the_one_with_the_smaller_budget(tmp_path, caplog, name):
    """Also of an objective that looks at the whole step first, and of one with a running baseline."""
    loss = {"objective": name}
    trainer = build_trainer(tmp_path / "large", cut=Cut(max_tokens=400), loss=loss, save_strategy="no")
    seen = []
    limited(trainer, 250, seen).train()
    assert "Out of memory in step 1 with micro-batches of up to 266 tokens; it is done again with 133" in caplog.text
    assert max(seen) <= 133
    small = build_trainer(tmp_path / "small", cut=Cut(max_tokens=133), loss=loss, save_strategy="no")
    small.train()
    assert losses_of(trainer) == losses_of(small)
    assert torch.equal(weights(trainer), weights(small))


def test_it_shrinks_until_it_fits(tmp_path):
    trainer = build_trainer(tmp_path / "large", cut=Cut(max_tokens=4096), save_strategy="no")
    whole = build_trainer(tmp_path / "whole", cut=Cut(max_tokens=4096), save_strategy="no")
    whole.train()
    limited(trainer, 100).train()
    assert trainer.cut.max_tokens <= 100
    assert losses_of(trainer) == pytest.approx(losses_of(whole), rel=1e-5)


def test_a_resumed_run_keeps_the_cut_that_its_checkpoint_had_come_to(tmp_path):
    """Memory ends in step 1, and not again: as if there had been more of it when the run was gone on with."""
    whole = build_trainer(tmp_path / "whole", cut=Cut(max_tokens=400))
    limited(whole, 250).train()
    again = build_trainer(tmp_path / "again", cut=Cut(max_tokens=400))
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert again.cut.max_tokens == whole.cut.max_tokens == 133
    assert torch.equal(weights(again), weights(whole))


def test_a_cut_that_is_asked_for_anew_is_taken(tmp_path):
    whole = build_trainer(tmp_path / "whole", cut=Cut(max_tokens=400))
    limited(whole, 250).train()
    again = build_trainer(tmp_path / "again", cut=Cut(max_tokens=200))
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert again.cut.max_tokens == 200


def test_a_row_that_does_not_fit_alone_is_named(tmp_path):
    groups = [*GROUPS[:15], build_group(80, 90, 95, row=16)]
    trainer = limited(build_trainer(tmp_path, groups=groups), 150)
    with pytest.raises(TrainingError, match=r"Out of memory in step 1: small\[train\] row 16 alone has \d+ tokens"):
        trainer.train()


def test_a_run_in_memory_checks_nothing_else(tmp_path):
    """Other errors of the step go through."""
    trainer = build_trainer(tmp_path)

    def broken(*arguments, **more):
        raise RuntimeError("another cause")

    trainer.model.forward = broken
    with pytest.raises(RuntimeError, match="another cause"):
        trainer.train()


@pytest.mark.parametrize("count", [16, 7, 1])
def test_a_process_cuts_its_share_as_the_smaller_budget_does(count):
    """But for the repeated groups that fill up, which it leaves out where it has others."""
    groups = build_groups(count, longest=40)
    for rank in (0, 1):
        large, small = (build_step(groups, Cut(max_tokens=size), rank=rank, ranks=2) for size in (400, 90))
        again = recut(large, Cut(max_tokens=90), Packing())
        assert (again.global_groups, again.global_first_tokens) == (count, small.global_first_tokens)
        fillers = [not batch.weights.any() for batch in small.micro_batches]
        kept = [places for places, filler in zip(small.places, fillers, strict=True) if not filler]
        assert list(again.places) == (kept or list(small.places))
        whole = [batch for batch, filler in zip(small.micro_batches, fillers, strict=True) if not filler]
        for one, other in zip(again.micro_batches, whole or small.micro_batches, strict=True):
            assert torch.equal(one.input_ids, other.input_ids) and one.origins == other.origins
