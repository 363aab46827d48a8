"""Files that are none of the benchmarks': one line that says where, and no number."""

import csv
import gzip
import json

import pytest

from preftune.cli.main import main
from preftune.errors import DataError
from preftune.evaluation.files import read_rows, read_table, write_rows
from preftune.evaluation.length_control import load_difficulties
from preftune.evaluation.mt_judge import build_judgings

ARENA = {"question_id": "q", "model": "m", "judge": "j", "games": [{"score": "A>B"}, {"score": "B>A"}]}
RATING = {"question_id": 1, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 5, "turn": 1}
PAIR = {"model_1": "a", "model_2": "b", "g1_winner": "model_1", "g2_winner": "tie"}
QUESTION = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
ANSWER = {"question_id": 1, "model_id": "m", "choices": [{"turns": ["x", "y"]}]}
PROMPT = {"name": "single-v1", "system_prompt": "s", "prompt_template": "{question}"}


def refused(folder, capsys, words, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["eval", *words[:2], str(file), *words[2:]]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "row", "changed", "message"),
    [
        (["arena-hard", "score"], ARENA, {"model": []}, "row 2: expected 'model' to be a name"),
        (["mt-bench", "score"], RATING, {"model": float("nan")}, "row 2: expected 'model' to be a name"),
        (["mt-bench", "score"], RATING, {"question_id": None}, "row 2: expected 'question_id' to be a name"),
        (["mt-bench", "score"], RATING, {"turn": "x"}, "row 2: expected a turn of 1 or 2, found 'x'"),
        (["mt-bench", "score"], RATING, {"turn": float("inf")}, "row 2: expected a turn of 1 or 2"),
        (["mt-bench", "score"], RATING, {"judge": "gemini"}, "expected one judge, found 2: gpt-4, gemini"),
        (["mt-bench", "score"], RATING | {"judge": "gpt-4"}, {"judge": "gemini"}, "found 2: gpt-4, gemini"),
        (["mt-bench", "score"], RATING, {"judge": 3}, "expected one judge, found 2: gpt-4, 3"),
        (["mt-bench", "score", "--pairs"], PAIR, {"model_1": {}}, "row 2: expected 'model_1' to be a name"),
        (["arena-hard", "score"], ARENA, {}, "question q is there twice, which would count twice"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(tmp_path, capsys, words, row, changed, message):
    assert message in refused(tmp_path, capsys, words, row, row | changed)


@pytest.mark.parametrize(("name", "first"), [("rows.jsonl.gz", b'{"question_id"'), ("rows.json.gz", b"[\n")])
def test_what_is_written_under_a_name_in_gz_is_packed_and_read_again(tmp_path, name, first):
    rows = [ARENA | {"model": "\ud800 é"}, ARENA | {"question_id": "r"}]
    write_rows(tmp_path / name, rows)
    packed = (tmp_path / name).read_bytes()
    assert gzip.decompress(packed).startswith(first)
    assert read_rows(tmp_path / name) == rows
    write_rows(tmp_path / name, rows)
    assert (tmp_path / name).read_bytes() == packed


def judgings(question=QUESTION, answers=(ANSWER,), prompt=PROMPT):
    two = {"name": "single-v1-multi-turn", "system_prompt": "s", "prompt_template": "{answer_2}"}
    return build_judgings([question], list(answers), [], [prompt, two])


def test_what_mt_bench_cannot_ask_about_is_named():
    assert len(judgings()) == 2
    with pytest.raises(DataError, match=r"question 1: expected two turns, found \['a'\]"):
        judgings(question=QUESTION | {"turns": ["a"]})
    with pytest.raises(DataError, match="question 1 is answered twice"):
        judgings(answers=[ANSWER, ANSWER | {"choices": [{"turns": ["x", "other"]}]}])
    for template in ("{foo}", "{0}", "{", "{question.__class__}", "{question!z}"):
        with pytest.raises(DataError, match="'single-v1' cannot be filled in"):
            judgings(prompt=PROMPT | {"prompt_template": template})


def test_a_damaged_file_is_one_line(tmp_path):
    packed = bytearray(gzip.compress(json.dumps([{"a": n} for n in range(99)]).encode()))
    packed[20] ^= 0xFF
    for name, data in (("a.json.gz", bytes(packed)), ("deep.json", b"[" * 100_000), ("latin.json", b'["\xe9"]')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_rows(tmp_path / name)
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert read_rows(tmp_path / "bom.json") == [{"a": 1}]
    (tmp_path / "d.csv").write_text("a,b\n1," + "9" * (csv.field_size_limit() + 1))
    with pytest.raises(DataError, match=r"d.csv: is not CSV"):
        read_table(tmp_path / "d.csv", ["a"])


def test_difficulties_are_finite_and_go_by_their_index(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text("index,instruction_difficulty\n2,0.2\n0,0.0\n1,0.1\n")
    assert load_difficulties(file).tolist() == [0.0, 0.1, 0.2]
    for text, message in (("0,nan\n", "row 1: expected a number, found 'nan'"), ("3,1\n", "count from 0 to 0")):
        file.write_text(f"index,instruction_difficulty\n{text}")
        with pytest.raises(DataError, match=message):
            load_difficulties(file)


def test_too_few_rows_for_the_folds_are_refused_and_a_given_strength_is_taken(tmp_path, capsys):
    rows = [
        {"instruction": f"q{n}", "output_1": "x" * n, "output_2": "y" * n * n, "preference": 1.2} for n in range(1, 5)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    words = ["eval", "alpaca-eval", "score", str(tmp_path / "a.json"), "--minimal"]
    assert main(words) == 2
    assert "4 judged rows; the strength of the length control is chosen by 5 folds" in capsys.readouterr().err
    assert main([*words, "--strength", "1"]) == 0
