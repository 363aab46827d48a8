"""A disk that ends, a folder that cannot be written to or goes away, a worker that dies: one line, nothing lost."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
from dataclasses import dataclass

import pytest

from preftune.train.checkpoint import checkpoints, problem
from tests.faults.child import run
from tests.faults.faults import at_step, skip_plots
from tests.faults.same import assert_resumes_to_the_same, assert_same

pytestmark = pytest.mark.slow
TRAIN = ["train", "recipe.yaml"]
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, (1 << 14) | (1 << 18)


def fill_the_disk():
    """From step 4 on no file may grow beyond 64 KiB: the weights are larger, the log is not."""
    at_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))


def remove_the_folder():
    at_step(4, lambda: shutil.rmtree("gone"))


def kill_the_worker():
    import multiprocessing

    at_step(4, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1]


def test_a_full_disk_keeps_the_checkpoint_before_it(work):
    code, said = run([*TRAIN, "output_dir=full"], work, fill_the_disk)
    assert code == 1
    assert last_line(said).startswith("TrainingError: checkpoint-4 could not be written to 'full' (")
    assert "checkpoint-2 and what is older are intact" in last_line(said)
    assert "Traceback" not in said
    assert [path.name for path in checkpoints(work / "full")] == ["checkpoint-2"]
    assert not (work / "full/.incomplete").exists()
    assert_resumes_to_the_same(work, "full")


def test_a_disk_that_is_full_at_the_end_keeps_the_last_checkpoint(work):
    words = [*TRAIN, "output_dir=full-at-end", "save_strategy=no", "rescue_minutes=1e-9"]
    code, said = run(words, work, fill_the_last_save)
    assert code == 1
    assert "rescue-7 is intact" in last_line(said)
    assert "Traceback" not in said
    assert_resumes_to_the_same(work, "full-at-end", "save_strategy=no")
    assert checkpoints(work / "full-at-end") == []


def fill_the_last_save():
    at_step(8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))


def test_a_folder_that_goes_away_is_named(work):
    code, said = run([*TRAIN, "output_dir=gone", "save_strategy=no", "logging_steps=1"], work, remove_the_folder)
    assert code == 1
    assert last_line(said).startswith("TrainingError: The run cannot write (FileNotFoundError: ")
    assert "the folder 'gone' is gone" in last_line(said)
    assert "Traceback" not in said


def without_root():
    """Root may write anywhere; this process no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        for part in range(3):
            data[part] &= ~(1 << CAP_DAC_OVERRIDE)
        assert libc.capset(header, data) == 0


@pytest.mark.parametrize("place", ["read-only/run", "pairs.jsonl/run"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_read(work, place):
    closed = work / "read-only"
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    code, said = run([*TRAIN, f"output_dir={place}", "model_name_or_path=absent"], work, without_root)
    assert code == 2
    assert last_line(said).startswith(f"RecipeError: 'output_dir' {place}: ")
    assert list(closed.iterdir()) == []


def test_a_worker_that_dies_stops_the_run_with_its_checkpoint(work):
    small = "total_batch_size=2"  # ten steps an epoch: more than are prepared ahead
    code, said = run([*TRAIN, "output_dir=small", small], work, skip_plots)
    assert code == 0, said
    words = [*TRAIN, "output_dir=worker", small, "dataloader_num_workers=1", "dataloader_prefetch_factor=1"]
    code, said = run(words, work, kill_the_worker)
    assert code == 1
    assert last_line(said).startswith("TrainingError: A process that prepares steps has died")
    assert re.search(r"checkpoint-[246] is intact", last_line(said))
    assert "Traceback" not in said
    assert all(problem(path) is None for path in checkpoints(work / "worker"))
    code, said = run([*words, "resume_from_checkpoint=true"], work, skip_plots)
    assert code == 0, said
    assert_same(work / "small", work / "worker")


def fill_the_shared_memory():
    """A /dev/shm without room for a byte, which this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) == 0
    assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k") == 0
    with pytest.raises(OSError, match="No space left"), open("/dev/shm/full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    skip_plots()


@pytest.mark.skipif(os.geteuid() != 0, reason="a full /dev/shm of its own takes a mount")
def test_full_shared_memory_matters_to_workers_alone_and_is_named(work):
    """Steps come from workers through a pipe; /dev/shm has the locks of their queues."""
    code, said = run([*TRAIN, "output_dir=shared"], work, fill_the_shared_memory)
    assert code == 0, said
    code, said = run([*TRAIN, "output_dir=shared-worker", "dataloader_num_workers=1"], work, fill_the_shared_memory)
    assert code == 1
    assert last_line(said).startswith("TrainingError: Shared memory (/dev/shm) is full")
    assert "dataloader_num_workers: 0" in last_line(said)
    assert "Traceback" not in said and "Exception ignored" not in said


@dataclass(frozen=True)
class Free:
    """The disk has so many bytes free."""

    count: int

    def __call__(self):
        usual = shutil.disk_usage
        shutil.disk_usage = lambda path: usual(path)._replace(free=self.count)
        skip_plots()


def test_the_room_on_the_disk_is_looked_at_before_the_first_step(work):
    weights = (work / "whole/model.safetensors").stat().st_size
    code, said = run([*TRAIN, "output_dir=no-room"], work, Free(3 * weights))
    assert code == 1
    assert "TrainingError: 'no-room' has 0.00 GiB free; the final model takes about" in last_line(said)
    assert checkpoints(work / "no-room") == []
    code, said = run([*TRAIN, "output_dir=little-room"], work, Free(5 * weights))  # final model, one checkpoint
    assert code == 0
    assert "this run may need" in said
    code, said = run([*TRAIN, "output_dir=room"], work, Free(20 * weights))
    assert code == 0
    assert "may need" not in said
