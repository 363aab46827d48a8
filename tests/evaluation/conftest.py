"""Real files of the benchmarks, from the folder named by PREFTUNE_TEST_DATA."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest

from preftune.evaluation.files import read_rows


def find_folder() -> Path:
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("real files of the benchmarks: set PREFTUNE_TEST_DATA to the folder that holds them")
    return Path(folder) / "eval"


@pytest.fixture(scope="session")
def eval_folder():
    return find_folder()


@pytest.fixture(scope="session")
def real_rows():
    """Reads a file of the folder once; the rows are not to be changed."""
    folder = find_folder()
    return lru_cache(lambda name: read_rows(folder / name))
