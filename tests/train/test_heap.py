"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from preftune.train.heap import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.zeros(1 << 21) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def run(**environment):
    command = [sys.executable, "-c", FAULTS]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return lines[0] == "True", int(lines[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_block_that_was_freed_is_used_again_without_page_faults():
    kept, faults = run()
    assert kept
    assert faults < 1000
    tuned, faults = run(MALLOC_ARENA_MAX="2")
    assert not tuned, "the user's own settings stay"
    assert faults > 1000
