"""A job can be killed at any byte and goes on to the same result."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from preftune.errors import CheckpointError, DataError
from preftune.onpolicy.journal import Journal, Share, check_output, journal_folder, read_items

SETTINGS = {"temperature": 0.8, "seeds": [1, 2]}


def run(folder, share, settings=SETTINGS, chunks=99):
    journal = Journal(folder, settings, share)
    made = journal.left()[:chunks]
    for numbers in made:
        journal.append([{"number": number, "text": f"naïve\n{number}"} for number in numbers])
    journal.close()
    return made


def test_a_journal_cut_at_any_byte_ends_the_same(tmp_path):
    share = Share(items=3, chunk=2)
    run(tmp_path, share, {})
    path = tmp_path / share.name
    whole = path.read_bytes()

    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        run(tmp_path, share, {})
        assert path.read_bytes() == whole


def test_what_is_done_is_not_done_again(tmp_path):
    share = Share(items=7, chunk=3)
    assert run(tmp_path, share, chunks=2) == [range(3), range(3, 6)]
    assert run(tmp_path, share) == [range(6, 7)]
    assert run(tmp_path, share) == []


def test_all_shares_together_are_every_item_once_and_in_order(tmp_path):
    for rank in range(3):
        assert read_items(tmp_path, 11, 2, 3) is None
        run(tmp_path, Share(11, 2, rank, 3))
    assert [item["number"] for item in read_items(tmp_path, 11, 2, 3)] == list(range(11))


def test_a_process_without_a_share_does_not_keep_the_others_waiting(tmp_path):
    for rank in range(3):
        run(tmp_path, Share(2, 2, rank, 3))
    assert [item["number"] for item in read_items(tmp_path, 2, 2, 3)] == [0, 1]


def test_another_setting_is_refused_with_the_difference(tmp_path):
    run(tmp_path, Share(4, 2), chunks=1)
    with pytest.raises(CheckpointError, match=r"temperature was 0\.8 and is 0\.7"):
        run(tmp_path, Share(4, 2), {**SETTINGS, "temperature": 0.7})
    with pytest.raises(CheckpointError, match=r"top_p was None and is 1"):
        run(tmp_path, Share(4, 2), {**SETTINGS, "top_p": 1})


def test_a_second_process_is_told_who_has_the_journal(tmp_path):
    """Without a lock the rows of both would be mixed, and the merge would take them."""
    program = """
import sys, time
from pathlib import Path
from preftune.onpolicy.journal import Journal, Share
journal = Journal(Path(sys.argv[1]), {}, Share(4, 2))
print("open", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "open\n"
        with pytest.raises(CheckpointError, match=rf"rank-0-of-1.jsonl: process {child.pid} on .* is writing it"):
            Journal(tmp_path, {}, Share(4, 2))
    finally:
        child.kill()
        child.communicate()
    run(tmp_path, Share(4, 2), {})  # the lock went with its process
    assert len(read_items(tmp_path, 4, 2, 1)) == 4


def test_another_number_of_processes_is_refused(tmp_path):
    run(tmp_path, Share(4, 2, 0, 2))
    with pytest.raises(CheckpointError, match="begun by 2 processes and would go on with 3"):
        run(tmp_path, Share(4, 2, 0, 3))


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n"])
def test_a_damaged_line_is_an_error(tmp_path, line):
    share = Share(2, 1)
    run(tmp_path, share)
    path = tmp_path / share.name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + lines[2])
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_items(tmp_path, 2, 1, 1)
    path.write_bytes(line + lines[1])
    with pytest.raises(CheckpointError, match=r"line 1 is damaged|first line"):
        run(tmp_path, share)


def test_half_a_surrogate_pair_is_written(tmp_path):
    journal = Journal(tmp_path, {}, Share(1, 1))
    journal.append([{"text": "\ud83d"}])
    assert json.loads(journal.path.read_bytes().splitlines()[1]) == {"text": "\ud83d"}


def test_a_file_that_no_job_made_is_not_written_over(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        check_output(output)
    journal_folder(output).mkdir()
    check_output(output)
    with pytest.raises(DataError, match="cannot be written"):
        check_output(tmp_path / "nowhere" / "out.jsonl")
