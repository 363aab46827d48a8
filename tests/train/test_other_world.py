"""Another number of processes on resume: where it goes on, and what is said where it does not.

That the run is the same is tested with real processes (tests/slow/test_other_world.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import CheckpointError
from preftune.train.checkpoint import MANIFEST
from preftune.train.saving import check_same_run, check_same_world


def made_by(folder: Path, processes: int, engine: str | None = None, batch: int = 8) -> Path:
    facts = {"processes": processes, "run": {"global_batch": batch, "seed": 1}, "settings": {}}
    (folder / MANIFEST).write_text(json.dumps(facts | ({"engine": engine} if engine else {})))
    return folder


@pytest.mark.parametrize(
    ("then", "engine", "now", "processes"),
    [(2, "DDP", "one process", 1), (1, "one process", "DDP", 4), (2, "ZeRO-3", "ZeRO-3", 2), (2, None, "DDP", 4)],
)
def test_whole_optimizers_go_on_in_other_processes_and_pieces_in_as_many(tmp_path, then, engine, now, processes):
    check_same_world(made_by(tmp_path, then, engine), now, processes)


@pytest.mark.parametrize(
    ("then", "engine", "now", "processes"),
    [(2, "ZeRO-3", "ZeRO-3", 4), (2, "FSDP2", "DDP", 4), (1, "one process", "ZeRO-2", 2)],
)
def test_pieces_of_other_processes_are_refused(tmp_path, then, engine, now, processes):
    with pytest.raises(CheckpointError, match=f"was made by {then} process.* under {engine}, and this is {now} with"):
        check_same_world(made_by(tmp_path, then, engine), now, processes)


@pytest.mark.parametrize(
    ("then", "now"), [("DDP", "FSDP2"), ("FSDP2", "DDP"), ("ZeRO-2", "ZeRO-3"), ("DDP", "ZeRO-3"), ("ZeRO-3", "FSDP2")]
)
def test_another_engine_with_as_many_processes_is_refused(tmp_path, then, now):
    """What it reads is laid out otherwise: the optimizer's state would be left out, or would not be found."""
    with pytest.raises(CheckpointError, match=f"was made by 2 processes under {then}, and this is {now} with 2: .*"):
        check_same_world(made_by(tmp_path, 2, then), now, 2)


def test_the_way_on_is_named_with_the_engine(tmp_path):
    with pytest.raises(CheckpointError, match="Go on with 2 processes under DDP, or start afresh"):
        check_same_world(made_by(tmp_path, 2, "DDP"), "FSDP2", 2)


def test_a_batch_that_other_processes_make_larger_is_refused_with_the_key_that_keeps_it(tmp_path):
    folder = made_by(tmp_path, 2, batch=16)
    with pytest.raises(CheckpointError, match="It was made by 2 processes, and this is 1: set total_batch_size: 16"):
        check_same_run(folder, {"global_batch": 8, "seed": 1}, {}, 1)
    with pytest.raises(CheckpointError, match="Use the recipe that made it"):
        check_same_run(folder, {"global_batch": 8, "seed": 1}, {}, 2)
    check_same_run(folder, {"global_batch": 16, "seed": 1}, {}, 1)


def test_a_folder_that_is_not_ours_is_left_to_whoever_reads_it(tmp_path):
    check_same_run(tmp_path, {"seed": 1}, {}, 1)
    check_same_world(tmp_path, "ZeRO-3", 2)
