"""`margins.jsonl`: every visit of every pair once, across a resume, and without a read of the device."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from preftune.train.margins import group_key, record_margins
from preftune.train.record import read_log
from tests.small import build_groups, build_model, lengths_of, slow_logps
from tests.train.test_host_reads import CountReads
from tests.train.test_trainer import GROUPS, STEPS, build_trainer


def recorded(folder, **changes):
    trainer = build_trainer(folder, **changes)
    record_margins(trainer)
    return trainer


def visits(folder):
    """(step, (source, row, digest), margin, tokens) of each."""
    return [
        (line["step"], (line["sources"][place], row, digest), margin, tokens)
        for line in read_log(folder / "margins.jsonl")
        for place, row, digest, margin, *tokens in line["pairs"]
    ]


def test_every_pair_is_there_at_each_of_its_visits(tmp_path):
    recorded(tmp_path, logging_steps=4).train()
    lines = read_log(tmp_path / "margins.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    found = visits(tmp_path)
    for epoch in (range(1, 6), range(6, 11)):
        seen = sorted(key for step, key, _, _ in found if step in epoch)
        assert seen == sorted(map(group_key, GROUPS))
    tokens = {group_key(group): list(map(len, group.response_ids)) for group in GROUPS}
    assert all(own == tokens[key] for _, key, _, own in found)


def test_the_margin_is_the_objectives_before_the_step(tmp_path):
    """SimPO with beta 2: twice the difference of the mean log-probs."""
    means = slow_logps(build_model("llama"), GROUPS) / lengths_of(GROUPS)
    wanted = {group_key(group): value for group, value in zip(GROUPS, 2 * (means[:, 0] - means[:, 1]), strict=True)}
    recorded(tmp_path, max_steps=1).train()
    first = visits(tmp_path)
    assert len(first) == 16
    for _, key, margin, _ in first:
        assert margin == pytest.approx(wanted[key].item(), rel=1e-4, abs=1e-5)


def test_of_ranked_groups_it_is_best_against_worst(tmp_path):
    groups = build_groups(12, responses=3) + build_groups(4, responses=2, seed=1)
    groups = [replace(group, origin=replace(group.origin, row=row)) for row, group in enumerate(groups)]
    recorded(tmp_path, groups=groups, loss={"objective": "rrhf"}, max_steps=1).train()
    sums = {group_key(group): slow_logps(build_model("llama"), [group])[0] for group in groups}
    lengths = {group_key(group): torch.tensor([len(ids) for ids in group.response_ids]) for group in groups}
    found = visits(tmp_path)
    assert len(found) == 16
    for _, key, margin, tokens in found:
        means = sums[key] / lengths[key]
        assert margin == pytest.approx((means[0] - means[-1]).item(), rel=1e-4, abs=1e-5)
        assert tokens == [lengths[key][0].item(), lengths[key][-1].item()]


def test_a_resume_neither_loses_nor_repeats_visits(tmp_path):
    """The lost process had written steps past its checkpoint, the last line not to its end."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    recorded(whole, logging_steps=4).train()
    shutil.copytree(whole, again)
    text = (again / "margins.jsonl").read_text()
    (again / "margins.jsonl").write_text(text[: text.index('{"step":8') + 40])
    recorded(again, logging_steps=4).train(resume_from_checkpoint=str(again / "checkpoint-5"))
    assert (again / "margins.jsonl").read_text() == text


def test_what_is_not_logged_yet_is_on_the_disk_with_the_checkpoint(tmp_path):
    trainer = recorded(tmp_path, logging_steps=100, save_steps=3, max_steps=7)
    published, written = trainer._publish, []

    def publish(run, name, rescue):
        written.append((name, len(read_log(tmp_path / "margins.jsonl"))))
        published(run, name, rescue)

    trainer._publish = publish
    trainer.train()
    assert written == [("checkpoint-3", 3), ("checkpoint-6", 6), ("checkpoint-7", 7)]


def test_a_step_that_is_done_again_counts_once(tmp_path):
    """Memory ends in the second micro-batch of the second step."""
    trainer = recorded(tmp_path, max_steps=3)
    noted, calls = trainer.guard.note, []

    def note(batch, sums):
        calls.append(trainer.state.global_step)
        if calls.count(1) == 2 and not trainer.in_memory.shrunk:
            raise torch.OutOfMemoryError("no memory")
        noted(batch, sums)

    trainer.guard.note = note
    trainer.train()
    assert trainer.in_memory.shrunk
    found = visits(tmp_path)
    assert len(found) == 48 and len({(step, key) for step, key, _, _ in found}) == 48


def test_a_fresh_run_in_a_used_folder_begins_a_file_of_its_own(tmp_path):
    recorded(tmp_path, max_steps=2).train()
    recorded(tmp_path, max_steps=1).train()
    assert [line["step"] for line in read_log(tmp_path / "margins.jsonl")] == [1]


def test_a_step_reads_the_device_no_more_often(tmp_path):
    trainer = recorded(tmp_path, max_steps=3, logging_steps=3, save_strategy="no")
    counted = CountReads(trainer)
    trainer.add_callback(counted)
    trainer.train()
    assert counted.steps == [(["_local_scalar_dense"], [])] * 3
    assert len(visits(tmp_path)) == 48


def test_an_objective_without_pairs_has_no_margins(tmp_path):
    trainer = build_trainer(tmp_path, groups=build_groups(20, responses=1), loss={"objective": "sft"}, max_steps=1)
    assert record_margins(trainer) is None
    trainer.train()
    assert not (tmp_path / "margins.jsonl").exists()


def test_a_line_is_json_that_stands_alone(tmp_path):
    recorded(tmp_path, max_steps=1).train()
    line = json.loads((tmp_path / "margins.jsonl").read_text())
    assert line["sources"] == ["small[train]"]
    assert set(line) == {"step", "sources", "pairs"}
