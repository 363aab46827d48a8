"""`preftune eval regress` from the command line."""

from __future__ import annotations

import json

from preftune.cli.main import main
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import build_model


def test_it_prints_the_table_and_keeps_the_answers(tmp_path, capsys):
    tokenizer = build_byte_tokenizer(CHATML)
    for name, seed in (("a", 0), ("b", 1)):
        build_model(vocab_size=len(tokenizer), num_hidden_layers=2, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "Hi.", "response": "Hello."}\n{"prompt": "Bye.", "response": "Bye."}\n'
    )
    words = ["eval", "regress", *(str(tmp_path / name) for name in ("a", "b", "rows.jsonl"))]
    words += ["--split", "train", "--max-tokens", "4", "--answers", str(tmp_path / "answers.jsonl")]
    assert main(words) == 0
    assert "| answer length, tokens | " in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in answers] == ["Hi.", "Bye."] and answers[0].keys() == {"prompt", "before", "after"}
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 2


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi.", "response": "Hello."}\n')
    words = ["eval", "regress", str(tmp_path / "none"), str(tmp_path / "none"), str(tmp_path / "rows.jsonl")]
    assert main([*words, "--split", "train"]) == 2
    assert "none' does not exist" in capsys.readouterr().err
