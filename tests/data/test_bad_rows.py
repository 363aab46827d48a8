"""Bad input: every case is one line that names the file, the place and the remedy; never a traceback of another kind."""

# ruff: noqa: E501 - the tables are easier to read with one case a line
from __future__ import annotations

import gzip
import json

import pytest

from preftune.data import load_preferences
from preftune.errors import DataError

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def row(**changes) -> dict:
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def said(*turns: str) -> list[dict[str, str]]:
    """said("user: q", "assistant: a")"""
    return [dict(zip(("role", "content"), text.split(": ", 1), strict=True)) for text in turns]


# name: (file, content, words of the place, words of the problem, words of the remedy)
FILES = {
    "empty file": ("x.jsonl", b"", "x.jsonl", "holds no rows", "written completely"),
    "blank lines alone": ("x.jsonl", b"\n \n", "x.jsonl", "holds no rows", "written completely"),
    "empty list": ("x.json", b"[]", "x.json", "holds no rows", "written completely"),
    "empty json": ("x.json", b"", "x.json", "holds no rows", "written completely"),
    "header alone": ("x.csv", b"prompt,chosen,rejected\n", "x.csv", "holds no rows", "written completely"),
    "invalid json in line 17": ("x.jsonl", lines(*[GOOD] * 16) + b'{"prompt": "q" "chosen"}\n', "line 17, column 16", "invalid JSON (Expecting ',' delimiter)", "Fix or delete this line"),
    "cut last line": ("x.jsonl", lines(GOOD) + b'{"prompt": "q', "line 2, column 12", "Unterminated string", "Fix or delete"),
    "invalid json file": ("x.json", b'[\n{"prompt": 1,}\n]', "line 2", "invalid JSON", "Fix the file there"),
    "nested without end": ("x.json", b"[" * 100_000, "line 1", "invalid JSON", "Fix the file"),
    "one object": ("x.json", json.dumps(GOOD).encode(), "x.json", "expected a list of objects, found an object", "name the file .jsonl"),
    "a number": ("x.json", b"5", "x.json", "found a number (5)", "Put the rows in [ ]"),
    "a row that is a list": ("x.jsonl", lines(GOOD) + b"[1]\n", "line 2", "found a list", "Fix or delete it"),
    "a row that is text": ("x.json", b'[{"prompt": "q"}, "text"]', "row 2", 'found text ("text")', "Fix or delete it"),
    "not utf-8": ("x.jsonl", lines(GOOD) + b'{"prompt": "caf\xe9"}', "line 2", "not UTF-8 (byte 0xe9 at offset 68)", "iconv -f latin1"),
    "utf-16": ("x.jsonl", "{}".encode("utf-16"), "line 1", "not UTF-8", "iconv -f utf-16"),
    "gzip without its ending": ("x.jsonl", gzip.compress(lines(GOOD)), "line 1", "not UTF-8", "the ending .gz"),
    "truncated gzip": ("x.jsonl.gz", gzip.compress(lines(*[GOOD] * 99))[:40], "x.jsonl.gz", "truncated", "download it again"),
    "no gzip at all": ("x.jsonl.gz", lines(GOOD), "x.jsonl.gz", "not a sound gzip file", "Copy it again"),
    "truncated zstd": ("x.jsonl.zst", b"\x28\xb5\x2f\xfd\x04\x58\x51\x00", "x.jsonl.zst", "truncated", "download it again"),
    "no zstd at all": ("x.jsonl.zst", lines(GOOD), "x.jsonl.zst", "not a sound zstd file", "Copy it again"),
    "no parquet at all": ("x.parquet", lines(GOOD), "x.parquet", "not a sound parquet file", "Copy it again"),
    "unknown ending": ("x.docx", b"x", "x.docx", "'.docx' cannot be read", "Use one of .jsonl, .json, .csv"),
    "csv with a cell too many": ("x.csv", b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", "row 2 (line 3)", "expected 3 cells as in the header, found 4", "double quotes"),
    "csv with an open quote": ("x.csv", b'prompt,chosen,rejected\na,b,"c\n', "line 2", "invalid CSV", "Check the quotes"),
    "csv with a column twice": ("x.csv", b"prompt,chosen,chosen\na,b,c\n", "line 1", "names a column twice (chosen)", "Rename one"),
}  # fmt: skip

# name: (second row, words of the problem, words of the remedy)
ROWS = {
    "missing column in a row": (row(rejected=...), "'rejected' is missing in this row (found: prompt, chosen)", "Give the row a 'rejected'"),
    "null": (row(chosen=None), "'chosen' is null, expected text or a list of messages", "Fill it in"),
    "null prompt": (row(prompt=None), "'prompt' is null", "Fill it in"),
    "empty answer": (row(rejected=""), "the answer in 'rejected' is empty", "delete the row"),
    "answer of whitespace": (row(chosen=" \n\t"), "the answer in 'chosen' is only whitespace", "delete the row"),
    "empty prompt": (row(prompt=""), "the prompt is empty", "delete the row"),
    "prompt of whitespace": (row(prompt="  "), "the prompt is empty", "delete the row"),
    "chosen equals rejected": (row(rejected="good"), "'chosen' and 'rejected' are the same", "two different answers"),
    "number as answer": (row(chosen=5), "'chosen' is a number (5), expected text or a list", "Write it as text"),
    "number as prompt": (row(prompt=1.5), "'prompt' is a number (1.5)", "Write it as text"),
    "true as answer": (row(chosen=True), "'chosen' is true, expected text", "Write it as text"),
    "empty list as answer": (row(chosen=[]), "'chosen' is an empty list", "Write it as text"),
    "list of texts": (row(chosen=["good"]), "'chosen' message 1 is text (\"good\")", '{"role": "user", "content": "..."}'),
    "message without content": (row(chosen=[{"role": "assistant"}]), "'chosen' message 1 has no 'content' or 'value' (found: role)", "Add it"),
    "message without role": (row(prompt=[{"content": "q"}]), "'prompt' message 1 has no 'role' or 'from'", "Add it"),
    "null content": (row(chosen=[{"role": "assistant", "content": None}]), "the content of 'chosen' message 1 is null, expected text", "Write it as text"),
    "content in parts": (row(prompt=[{"role": "user", "content": [{"type": "text"}]}]), "the content of 'prompt' message 1 is a list", "Write it as text"),
    "unknown role": (row(prompt=said("narrator: q")), 'the role "narrator", which is not known', "Use one of system, user"),
    "role that is a number": (row(prompt=[{"role": 1, "content": "q"}]), "the role a number (1)", "Use one of system, user"),
    "answer from the user": (row(chosen=said("user: q")), "the last message of 'chosen' is from the user", "Cut the conversation"),
    "prompt that ends with an answer": (row(prompt=said("user: q", "assistant: a")), "the prompt ends with a message from the assistant", "End it before"),
    "prompt of a system message": (row(prompt=said("system: s")), "the prompt ends with a message from the system", "End it before"),
    "histories that differ": (row(chosen=said("user: q", "assistant: a"), rejected=said("user: r", "assistant: b")), 'start with different prompts (user: "q" / user: "r")', "Give a 'prompt' column"),
    "prompt that is not in the history": (row(chosen=said("user: x", "assistant: a")), 'start with different prompts (user: "q" / user: "x")', "Give a 'prompt' column"),
    "half a surrogate pair": (row(chosen="bad \ud800"), "half of a surrogate pair at character 5", "Remove it"),
    "history that is text": (row(history="q1"), "'history' is text (\"q1\"), expected a list of [question, answer]", 'Write it as [["question"'),
    "history of triples": (row(history=[["a", "b", "c"]]), "'history' turn 1 is not a pair", 'Write it as [["question"'),
    "history with null": (row(history=[["a", None]]), "'history' turn 1 is null, expected text", "Write it as text"),
    "system that is a number": (row(system=5), "'system' is a number (5), expected text", "Write it as text"),
    "two system messages": (row(system="A", prompt=said("system: B", "user: q")), 'two system messages ("B" in the prompt, "A" in the column)', "Keep one"),
    "earlier turns twice": (row(history=[["a", "b"]], chosen=said("user: q", "assistant: a")), "both hold earlier turns", "Keep them in one place"),
}  # fmt: skip

# name: (first row, columns, words of the problem, words of the remedy)
FORMS = {
    "no rejected column": ({"prompt": "q", "chosen": "a"}, None, "there is no 'rejected' column (found: prompt, chosen)", "columns: {your_column: rejected}"),
    "misspelt column": ({"prompt": "q", "choosen": "a", "rejected": "b"}, None, "nearest: 'choosen'", "columns: {choosen: chosen}"),
    "other names": ({"question": "q", "answer_zh": "a", "answer_en": "b"}, None, "there is no 'chosen' column", "columns: {"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, None, "there is no prompt", "columns: {your_column: prompt}"),
    "no columns": ({}, None, "found: none", "columns: {"),
    "map of a column that is not there": (GOOD, {"promt": "prompt"}, "'columns' names 'promt'", "nearest: 'prompt'"),
}  # fmt: skip


def refusal(path, **arguments) -> str:
    with pytest.raises(DataError) as caught:
        load_preferences(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name):
    file, content, place, problem, remedy = FILES[name]
    if file.endswith(".zst"):
        pytest.importorskip("zstandard")
    (tmp_path / file).write_bytes(content)
    message = refusal(tmp_path / file)
    assert place in message
    assert problem in message
    assert remedy in message


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_refused_in_one_line(tmp_path, name):
    bad, problem, remedy = ROWS[name]
    (tmp_path / "x.jsonl").write_bytes(lines(GOOD, bad, GOOD))
    message = refusal(tmp_path / "x.jsonl")
    assert message.startswith(f"{tmp_path / 'x.jsonl'}[train] row 2: ")
    assert problem in message
    assert remedy in message


@pytest.mark.parametrize("name", FORMS)
def test_columns_that_give_no_form_are_refused_in_one_line(tmp_path, name):
    first, columns, problem, remedy = FORMS[name]
    (tmp_path / "x.jsonl").write_bytes(lines(first))
    message = refusal(tmp_path / "x.jsonl", columns=columns)
    assert message.startswith(f"{tmp_path / 'x.jsonl'}[train] row 1: ")
    assert problem in message
    assert remedy in message


def test_a_missing_file_names_what_stands_beside_it(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(lines(GOOD))
    assert "there is no such file or folder. Check the path; beside it: pairs.jsonl" in refusal(tmp_path / "pair.jsonl")


def test_a_folder_without_data_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no data files. Expected files ending in .jsonl" in refusal(tmp_path)


def test_one_bad_row_among_many_is_found(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines(*[GOOD] * 20_000, row(chosen=""), *[GOOD] * 20_000))
    assert "row 20001: " in refusal(tmp_path / "x.jsonl")


def test_text_that_is_not_utf8_inside_parquet_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"caf\xe9"]).buffers())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": bad}), tmp_path / "x.parquet")
    assert "not UTF-8. Write the file anew" in refusal(tmp_path / "x.parquet")


def test_several_files_are_read_one_after_the_other(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "b.jsonl").write_bytes(lines({"query": "q", "response": "a", "rejected_response": "b"}))
    examples = load_preferences([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert [example.responses for example in examples] == [("good", "bad"), ("a", "b")]
