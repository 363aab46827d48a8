"""Every published preference file: what was recognised, what became of its rows, and its first three examples.

The golden file holds no text of these sets, only the first 12 hex digits of the SHA-256 of each turn and its length in
characters. `PREFTUNE_TEST_DATA=... python tests/data/test_golden_preferences.py` writes it anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from preftune.data import load_rows, recognise, to_examples
from preftune.data.bad_rows import SkippedRows
from preftune.types import Example

GOLDEN = Path(__file__).parent / "golden" / "preferences.json"
# a file is read as pairs unless its folder or file stands here
LAYOUTS = {
    "lima": "single",
    "llamafactory/alpaca_en_demo_sft": "single",
    "llamafactory/kto_en_demo": "unpaired",
    "llamafactory/kto_mix_test_alpaca": "unpaired",
    "oasst-zh": "ranked",
}
# the maps that files need: one line each
COLUMNS = {"autoj": {"label": "winner_index"}}
NO_FORM = ("text/tinystories.jsonl",)  # texts without a prompt


def short(text: str) -> list[str | int]:
    return [hashlib.sha256(text.encode()).hexdigest()[:12], len(text)]


def shown(example: Example) -> dict:
    return {
        "row": example.origin.row,
        "prompt": [[message.role, *short(message.content)] for message in example.prompt],
        "responses": [short(response) for response in example.responses],
        "scores": list(example.scores),
    }


def entry(root: Path, file: str) -> dict:
    layout = next((layout for start, layout in LAYOUTS.items() if file.startswith(start)), "paired")
    columns = COLUMNS.get(file.split("/")[0])
    rows = load_rows(root / file)
    skipped = SkippedRows()
    examples = to_examples(rows, layout, columns, on_bad_row="skip", skipped=skipped)
    problems = {
        str(problem): {"count": count, "first": [origin.row for origin in skipped.first[problem]]}
        for problem, count in skipped.counts.items()
    }
    return {
        "columns": columns,
        "mapping": str(recognise(rows, layout, columns)),
        "rows": skipped.read,
        "examples": len(examples),
        "skipped": problems,
        "first": [shown(example) for example in examples[:3]],
    }


def published(root: Path) -> list[str]:
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.jsonl*"))
    return [file for file in files if file not in NO_FORM]


@pytest.mark.parametrize("file", json.loads(GOLDEN.read_text()))
def test_a_published_file_is_read_as_before(data_folder, file):
    assert entry(data_folder / "preferences", file) == json.loads(GOLDEN.read_text())[file]


def test_every_published_file_has_its_golden_entry(data_folder):
    assert published(data_folder / "preferences") == sorted(json.loads(GOLDEN.read_text()))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    folder = Path(os.environ["PREFTUNE_TEST_DATA"]) / "preferences"
    entries = [f"{json.dumps(file)}: {json.dumps(entry(folder, file))}" for file in published(folder)]
    GOLDEN.write_text("{\n" + ",\n".join(entries) + "\n}\n")
