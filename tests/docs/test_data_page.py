"""Every row that docs/data.md prints is read as the page says: they all are the same question and answers."""

from __future__ import annotations

import re

import pytest
import yaml

from preftune.data import load_preferences
from preftune.types import Layout
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs/data.md"
GOOD, BAD = "Blue light scatters most.", "Because it is."
LAYOUTS = {
    "Pairs": (Layout.PAIRED, [(GOOD, BAD)]),
    "Several answers": (Layout.RANKED, [(GOOD, BAD)]),
    "One answer with a label": (Layout.UNPAIRED, [(GOOD,), (BAD,)]),
    "SFT": (Layout.SINGLE, [(GOOD,)]),
    "Prompts": (Layout.PROMPT, [()]),
    "Beside any of these": (Layout.PAIRED, [(GOOD, BAD)]),
}


def rows():
    """Section, columns, language and text of each block of rows."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    columns = None
    for block in blocks(PAGE, "json", "csv", "yaml"):
        section = next(line[3:] for line in reversed(lines[: block.line]) if line.startswith("## "))
        if block.language == "yaml":
            columns = yaml.safe_load(block.text)["columns"]
            continue
        yield pytest.param(section, columns, block, id=f"{section}-{block.line}")
        columns = None


@pytest.mark.parametrize(("section", "columns", "block"), rows())
def test_a_row_of_the_page_is_read_as_it_says(section, columns, block, tmp_path):
    layout, answers = LAYOUTS[section]
    file = tmp_path / ("rows.csv" if block.language == "csv" else "rows.jsonl")
    file.write_text(block.text, encoding="utf-8")
    examples = load_preferences(file, layout=layout, columns=columns)
    assert [example.responses for example in examples] == answers
    assert all("Why is the sky blue?" in example.prompt[-1].content for example in examples)
    assert [example.weight for example in examples] == [2.0 if '"weight"' in block.text else 1.0] * len(answers)
    assert [bool(example.tools) for example in examples] == ['"tools"' in block.text] * len(answers)


def test_every_section_with_rows_was_read():
    named = set(re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(LAYOUTS) <= named
    assert {param.values[0] for param in rows()} == set(LAYOUTS)
