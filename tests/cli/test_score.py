"""`preftune score`, the verb: options, output, exit codes."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from preftune.cli.main import main
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE

ROWS = [{"q": "2 + 2?", "chosen": "4", "rejected": "five"}, {"q": "Rome?", "chosen": "Italy", "rejected": "No"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "vocab_size": 260, "num_labels": 1, "pad_token_id": 256})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    build_byte_tokenizer(CHATML).save_pretrained(path)
    return path


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_scores_are_written_and_the_summary_is_json(folder, rows, tmp_path, capsys):
    output = tmp_path / "scored.jsonl"
    words = [str(folder), str(rows), "--output", str(output), "--columns", "q=prompt", "--batch-tokens", "64", "--json"]
    assert main(["score", *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{**row, "scores": None} for row in scored] == [{**row, "scores": None} for row in ROWS]
    hits = [row["scores"][0] > row["scores"][1] for row in scored]
    assert summary["accuracy"] == sum(hits) / 2
    assert (summary["rows"], summary["responses"]) == (2, 4)
    assert summary["mean"] == pytest.approx(sum(sum(row["scores"]) for row in scored) / 4)


def test_without_output_the_summary_is_a_table(folder, rows, capsys):
    assert main(["score", str(folder), str(rows), "--columns", "q=prompt", "rejected="]) == 0
    printed = capsys.readouterr()
    assert "responses" in printed.out and "accuracy" not in printed.out
    assert "rejected" in printed.err.split("unused: ")[1]
    assert [path.name for path in rows.parent.iterdir()] == ["rows.jsonl"]


def test_what_is_wrong_is_one_line_and_2(folder, rows, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = {
        (str(folder), str(tmp_path / "none.jsonl")): "DataError: ",
        (str(tmp_path / "empty"), str(rows), "--columns", "q=prompt"): "ModelError: There is no model in ",
        (str(folder), str(rows)): "DataError: ",
        (str(folder), str(rows), "--columns", "q=promt"): "RecipeError: 'columns' maps 'q' to 'promt'",
    }
    for words, start in cases.items():
        assert main(["score", *words]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(start)


@pytest.mark.parametrize(
    "words", [["--batch-tokens", "0"], ["--max-length", "1"], ["--columns", "prompt"], ["--colum"]]
)
def test_a_wrong_option_leaves_with_2(words, capsys):
    assert main(["score", "model", "file", *words]) == 2
    assert "usage: preftune score" in capsys.readouterr().err
