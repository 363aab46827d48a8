"""Out of memory in an update of PPO: its micro-batches shrink, and the run is the one that had the smaller budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from preftune import train
from preftune.errors import TrainingError
from preftune.train.ppo import update
from tests.train.test_ppo import lines, models, weights, work  # noqa: F401 (fixtures)

# Two rows of some 31 tokens run together; a step is four updates of four rows.
ROWS = {"micro_batch_tokens": 70, "num_mini_batches": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def end_memory(monkeypatch):
    """Memory that ends in some micro-batches of a run, counted from 1; returns their sizes as they come."""

    def ends(*numbers):
        sizes, usual = [], update.pack

        def pack(groups):
            batch = usual(groups)
            sizes.append(batch.tokens)
            if len(sizes) in numbers:
                raise torch.OutOfMemoryError(f"Tried to allocate {batch.tokens} tokens")
            return batch

        monkeypatch.setattr(update, "pack", pack)
        return sizes

    return ends


def budget(checkpoint):
    return json.loads((Path(checkpoint) / "manifest.json").read_text())["micro_batch_tokens"]


@pytest.mark.parametrize("number", [1, 2])
def test_the_run_is_the_one_with_the_smaller_budget(work, end_memory, caplog, number):  # noqa: F811
    """Memory ends in the first micro-batch of the first update, or in the second, when there is a gradient already."""
    sizes = end_memory(number)
    train(None, **{**work, **ROWS})
    assert "Out of memory in step 1 with micro-batches of up to" in caplog.text
    taken = budget("run/checkpoint-2")["taken"]
    assert len(sizes) == number + 8 * 4  # the update that fails, and eight with each of the four rows by itself
    assert taken < max(sizes[:number])
    log, found = lines(), weights()
    end_memory()
    train(None, **{**work, **ROWS, "micro_batch_tokens": taken, "output_dir": "small"})
    assert lines("small") == log
    assert all(torch.equal(value, found[name]) for name, value in weights("small").items())


def test_a_resumed_run_keeps_the_budget_that_its_checkpoint_had_come_to(work, end_memory):  # noqa: F811
    end_memory(1)
    train(None, **{**work, **ROWS})
    found, kept = weights(), budget("run/checkpoint-1")
    sizes = end_memory()
    train(None, **{**work, **ROWS}, resume_from_checkpoint="run/checkpoint-1")
    assert len(sizes) == 4 * 4 and kept["taken"] < kept["asked"] == 70
    assert all(torch.equal(value, found[name]) for name, value in weights().items())


def test_a_response_that_does_not_fit_alone_is_said(work, end_memory):  # noqa: F811
    end_memory(*range(1, 20))
    with pytest.raises(
        TrainingError, match=r"Out of memory in step 1: a prompt with its response alone has \d+ tokens"
    ):
        train(None, **{**work, **ROWS})


def test_responses_that_cannot_be_sampled_together_are_said(work, monkeypatch):  # noqa: F811
    from preftune.train.ppo import loop

    def full(*given):
        raise torch.OutOfMemoryError("Tried to allocate it all")

    monkeypatch.setattr(loop, "roll_out", full)
    with pytest.raises(
        TrainingError, match=r"step 1, where responses are sampled, 64 together .*local_rollout_forward"
    ):
        train(None, **work)
