"""Runs of preftune in processes of their own, forked from a server that has imported everything: real, and at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["preftune.train.run", "preftune.cli.train", "tests.faults.faults"])

Fault = Callable[[], None]
LONGEST = 300  # seconds that a run may take, on a machine that is busy with others


def start(words: Sequence[str], folder: Path, fault: Fault | None = None, said: str = "said.txt"):
    """Start `preftune WORDS` in a folder, after `fault` has broken something; what it prints goes to `said`."""
    process = _SERVER.Process(target=_run, args=(list(words), str(folder), fault, said))
    process.start()
    return process


def run(words: Sequence[str], folder: Path, fault: Fault | None = None, timeout: float = LONGEST) -> tuple[int, str]:
    """The exit code (negative: the signal that ended it) and what it printed."""
    process = start(words, folder, fault)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        said = (folder / "said.txt").read_text()
        raise AssertionError(f"preftune {' '.join(words)} did not end within {timeout} s: {said[-3000:]}")
    return process.exitcode, (folder / "said.txt").read_text()


def _run(words: list[str], folder: str, fault: Fault | None, said: str) -> None:
    import faulthandler

    import torch

    from preftune.cli.main import main

    os.chdir(folder)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(LONGEST - 10)  # where it hangs
    torch.set_num_threads(1)
    if fault is not None:
        fault()
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
