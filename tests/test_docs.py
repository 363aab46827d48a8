"""The generated pages are those that the code makes now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from preftune.objectives import objective_names

ROOT = Path(__file__).parents[1]


def load(name):
    path = ROOT / "docs" / name
    if not path.is_file():
        pytest.skip("docs/ is not part of this installation")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_flags_is_fresh():
    module = load("make_flags.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "docs/rlhf.md is old: run `make docs`"


def test_the_page_of_objectives_is_fresh():
    module = load("make_objectives.py")
    page = module.page()
    assert module.PAGE.read_text(encoding="utf-8") == page, "docs/objectives.md is old: run `make docs`"
    assert all(f"## {name}\n" in page for name in objective_names())
