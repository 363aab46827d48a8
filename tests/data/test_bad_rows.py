"""Bad input: every case is one line that names the file, the place and the remedy; never a traceback of another kind."""

# ruff: noqa: E501 - the tables are easier to read with one case a line
from __future__ import annotations

import gzip
import json

import pytest

from preftune.data import load_preferences
from preftune.data.bad_rows import SkippedRows
from preftune.errors import DataError

GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def changed(good: dict, changes: dict) -> dict:
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def row(**changes) -> dict:
    return changed(GOOD, changes)


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
    "message without content": (row(chosen=[{"role": "assistant"}]), "'chosen' message 1 has no 'content', 'value' or 'text' (found: role)", "Add it"),
    "message without role": (row(prompt=[{"content": "q"}]), "'prompt' message 1 has no 'role' or 'from'", "Add it"),
    "null content": (row(chosen=[{"role": "assistant", "content": None}]), "the content of 'chosen' message 1 is null, expected text", "Write it as text"),
    "part without text": (row(prompt=[{"role": "user", "content": [{"type": "text"}]}]), "the content of 'prompt' message 1 part 1 is no text (found: type: text)", "Only text can be read"),
    "part that is an image": (row(prompt=[{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]), "part 1 is no text (found: type: image_url, text: x)", "Only text can be read"),
    "part that is a number": (row(prompt=[{"role": "user", "content": [5]}]), "message 1 part 1 is a number (5), expected an object", "Only text can be read"),
    "empty content": (row(prompt=[{"role": "user", "content": []}]), "the content of 'prompt' message 1 is an empty list, expected text", "Write it as text"),
    "one of several rejected is empty": (row(rejected=["bad", ""]), "the answer in 'rejected' item 2 is empty", "delete the row"),
    "one of several rejected is the chosen": (row(rejected=["bad", "good"]), "'chosen' and 'rejected' are the same", "delete the row"),
    "one of several rejected is a number": (row(rejected=["bad", 5]), "'rejected' item 2 is a number (5)", "Write it as text"),
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

LABELLED = {"prompt": "q", "response": "a", "label": True}
ALPACA = {"instruction": "q", "output": "a", "tag": True}
RANKED = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
OBJECTS = {"prompt": "q", "completions": [{"response": "a", "score": 2}, {"response": "b", "score": 1}]}
ORDERED = {"instruction": "q", "output": ["a", "b"]}
MARGIN = {**GOOD, "margin": 1}
RATED = {**GOOD, "chosen_score": 2, "rejected_score": 1}
COMPARED = {"prompt": "q", "output_1": "a", "output_2": "b", "label": 2}
VOTES = {"prompt": "q", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 1, "annotator3": 2}
BETTER = "expected which of 'output_1' and 'output_2' is better"
NAME = "Write the number or the name of the better answer"
LABELS = "expected true or false (or 1 or 0)"
WRITE = "Write true for a desirable answer and false for an undesirable one"

# name: (layout, good row, second row, words of the problem, words of the remedy)
LAYOUT_ROWS = {
    "null label": ("unpaired", LABELLED, {"label": None}, f"'label' is null, {LABELS}", "Fill it in, or delete the row"),
    "no label": ("unpaired", LABELLED, {"label": ...}, "'label' is missing in this row (found: prompt, response)", "Give the row a 'label'"),
    "label 2": ("unpaired", LABELLED, {"label": 2}, f"'label' is a number (2), {LABELS}", WRITE),
    "label -1": ("unpaired", LABELLED, {"label": -1}, f"'label' is a number (-1), {LABELS}", WRITE),
    "label of a half": ("unpaired", LABELLED, {"label": 0.5}, f"'label' is a number (0.5), {LABELS}", WRITE),
    "label NaN": ("unpaired", LABELLED, {"label": float("nan")}, f"'label' is NaN, {LABELS}", WRITE),
    "label in words": ("unpaired", LABELLED, {"label": "good"}, f"'label' is text (\"good\"), {LABELS}", WRITE),
    "empty label": ("unpaired", LABELLED, {"label": ""}, f"'label' is text (\"\"), {LABELS}", WRITE),
    "list of labels": ("unpaired", LABELLED, {"label": [True]}, f"'label' is a list, {LABELS}", WRITE),
    "object as label": ("unpaired", LABELLED, {"label": {}}, f"'label' is an object, {LABELS}", WRITE),
    "tag that is no label": ("unpaired", ALPACA, {"tag": "chat"}, f"'tag' is text (\"chat\"), {LABELS}", WRITE),
    "labelled answer that is empty": ("unpaired", LABELLED, {"response": ""}, "the answer in 'response' is empty", "delete the row"),
    "labelled answer that is null": ("unpaired", LABELLED, {"response": None}, "'response' is null", "delete the row"),
    "pair to split that is equal": ("unpaired", GOOD, {"rejected": "good"}, "'chosen' and 'rejected' are the same", "delete the row"),
    "one response": ("ranked", RANKED, {"responses": ["a"]}, "'responses' is a list of 1, expected at least 2 responses", "Add another response"),
    "no responses": ("ranked", RANKED, {"responses": []}, "'responses' is a list of 0, expected at least 2 responses", "Add another response"),
    "null responses": ("ranked", RANKED, {"responses": None}, "'responses' is null, expected a list of responses", "Fill it in"),
    "text as responses": ("ranked", RANKED, {"responses": "a"}, "'responses' is text (\"a\"), expected a list of responses", "Write it as ["),
    "text among lists of answers": ("ranked", ORDERED, {"output": "a"}, "'output' is text (\"a\"), expected a list of responses", "Write it as ["),
    "empty response": ("ranked", RANKED, {"responses": ["a", "", "c"]}, "the answer in 'responses' item 2 is empty", "delete the row"),
    "response of whitespace": ("ranked", RANKED, {"responses": ["a", "b", " "]}, "the answer in 'responses' item 3 is only whitespace", "delete the row"),
    "null response": ("ranked", RANKED, {"responses": ["a", None, "c"]}, "'responses' item 2 is null, expected text or a list of messages", "Write it as text"),
    "number as response": ("ranked", RANKED, {"responses": ["a", 5, "c"]}, "'responses' item 2 is a number (5)", "Write it as text"),
    "response from the user": ("ranked", RANKED, {"responses": ["a", said("user: q"), "c"]}, "the last message of 'responses' item 2 is from the user", "Cut the conversation"),
    "responses to different prompts": ("ranked", RANKED, {"responses": ["a", said("user: q", "assistant: b"), said("user: r", "assistant: c")]}, "'prompt' and 'responses' start with different prompts", "Give a 'prompt' column"),
    "a score too few": ("ranked", RANKED, {"scores": [1, 2]}, "'scores' holds 2 numbers for 3 responses in 'responses'", "Write one number a response"),
    "a score too many": ("ranked", RANKED, {"scores": [1, 2, 3, 4]}, "'scores' holds 4 numbers for 3 responses in 'responses'", "Write one number a response"),
    "null scores": ("ranked", RANKED, {"scores": None}, "'scores' is null, expected a list of 3 numbers", "Fill it in"),
    "no scores": ("ranked", RANKED, {"scores": ...}, "'scores' is missing in this row", "Give the row a 'scores'"),
    "number as scores": ("ranked", RANKED, {"scores": 3}, "'scores' is a number (3), expected a list of 3 numbers", "Write one number a response"),
    "text as score": ("ranked", RANKED, {"scores": [3, "good", 1]}, "'scores' item 2 is text (\"good\"), expected a finite number", "Write one number"),
    "null as score": ("ranked", RANKED, {"scores": [3, None, 1]}, "'scores' item 2 is null, expected a finite number", "Write one number"),
    "true as score": ("ranked", RANKED, {"scores": [3, True, 1]}, "'scores' item 2 is true, expected a finite number", "Write one number"),
    "NaN as score": ("ranked", RANKED, {"scores": [3, 2, float("nan")]}, "'scores' item 3 is NaN, expected a finite number", "Write one number"),
    "text NaN as score": ("ranked", RANKED, {"scores": [3, 2, "nan"]}, "'scores' item 3 is text (\"nan\"), expected a finite number", "Write one number"),
    "infinite score": ("ranked", RANKED, {"scores": [float("inf"), 2, 1]}, "'scores' item 1 is a large number, expected a finite number", "Write one number"),
    "score beyond float32": ("ranked", RANKED, {"scores": [10**400, 2, 1]}, "'scores' item 1 is a large number, expected a finite number", "Write one number"),
    "equal scores": ("ranked", RANKED, {"scores": [2, 2, 2.0]}, "all 3 responses have the same score (2), so none is preferred", "delete the row"),
    "a response of two scores": ("ranked", RANKED, {"responses": ["a", "b", "a"]}, "items 1 and 3 of 'responses' are the same response (\"a\") with scores 3 and 1", "Delete one of them"),
    "a response at two ranks": ("ranked", ORDERED, {"output": ["a", "b", "b"]}, "items 2 and 3 of 'output' are the same response (\"b\") at two ranks", "Delete one of them"),
    "object without response": ("ranked", OBJECTS, {"completions": [{"response": "a"}, {"words": "b"}]}, "'completions' item 2 message 1 has no 'role' or 'from' (found: words)", "delete the row"),
    "object without score": ("ranked", OBJECTS, {"completions": [{"response": "a", "score": 1}, {"response": "b"}]}, "the overall_score or score or rating or reward of 'completions' item 2 is null, expected a finite number", "Write one number"),
    "object with equal ranks": ("ranked", OBJECTS, {"completions": [{"response": "a", "rank": 1}, {"response": "b", "rank": 1}]}, "all 2 responses have the same rank (1)", "delete the row"),
    "ranked row in a file read as pairs": ("paired", RANKED, {"scores": [1, 1, 1]}, "all 3 responses have the same score", "delete the row"),
    "negative margin": ("paired", MARGIN, {"margin": -1}, "'margin' is a number (-1), expected a number of at least 0", "columns: {margin: null}"),
    "margin in words": ("paired", MARGIN, {"margin": "big"}, "'margin' is text (\"big\"), expected a finite number", "columns: {margin: null}"),
    "null margin of a ranked row": ("ranked", MARGIN, {"margin": None}, "'margin' is null, expected a finite number", "Fill it in"),
    "winner is a tie": ("paired", COMPARED, {"label": 1.5}, "'label' calls it a tie", "delete the row"),
    "winner is a tie in words": ("unpaired", COMPARED, {"label": " Tie "}, "'label' calls it a tie", "delete the row"),
    "winner null": ("paired", COMPARED, {"label": None}, f"'label' is null, {BETTER}", "Fill it in"),
    "winner NaN": ("ranked", COMPARED, {"label": float("nan")}, f"'label' is NaN, {BETTER}", NAME),
    "winner in other words": ("single", COMPARED, {"label": "maybe"}, f"'label' is text (\"maybe\"), {BETTER}", NAME),
    "winner true": ("paired", COMPARED, {"label": True}, f"'label' is true, {BETTER}", NAME),
    "winner missing": ("paired", COMPARED, {"label": ...}, "'label' is missing in this row", "Give the row a 'label'"),
    "equal answers to compare": ("paired", COMPARED, {"output_2": "a"}, "'output_1' and 'output_2' are the same (\"a\")", "delete the row"),
    "empty answer to compare": ("paired", COMPARED, {"output_1": ""}, "the answer in 'output_1' is empty", "delete the row"),
    "annotators who do not agree": ("paired", VOTES, {"annotator2": 0}, "'annotator1' and 'annotator2' and 'annotator3' call it a tie", "delete the row"),
    "an annotator's third answer": ("paired", VOTES, {"annotator2": 3}, "'annotator2' is a number (3), expected which of 'response1' and 'response2' is better", NAME),
    "scores against the pair": ("ranked", RATED, {"rejected_score": 3.5}, "'chosen_score' (2) is below 'rejected_score' (3.5): the scores contradict the pair", "columns: {chosen_score: null, rejected_score: null}"),
    "score of a pair that is a list": ("paired", RATED, {"chosen_score": [1]}, "'chosen_score' is a list, expected a finite number", "columns: {chosen_score: null, rejected_score: null}"),
}  # fmt: skip

# name: (layout, first row, words of the problem, words of the remedy)
LAYOUT_FORMS = {
    "labelled rows as pairs": ("paired", LABELLED, "the rows are unpaired: one answer and a label ('label'), expected chosen and rejected", "Set objective: kto"),
    "tagged rows as pairs": ("paired", ALPACA, "the rows are unpaired: one answer and a label ('tag')", "Set objective: kto"),
    "a labelled conversation as pairs": ("paired", {"messages": said("user: q", "assistant: a"), "kto_tag": False}, "the rows are unpaired: one answer and a label ('kto_tag')", "Set objective: kto"),
    "labelled rows as ranked": ("ranked", LABELLED, "the rows are unpaired", "Set objective: kto, which trains on such rows, or give rows with several responses"),
    "ranked rows as unpaired": ("unpaired", RANKED, "the rows are ranked: several responses ('responses'), expected one answer and a label", "Set objective: rrhf, reward or one for pairs"),
    "a list of answers as unpaired": ("unpaired", ORDERED, "the rows are ranked: several responses ('output')", "Set objective: rrhf"),
    "no label": ("unpaired", {"prompt": "q", "response": "a"}, "there is no 'label' column (found: prompt, response)", "columns: {your_column: label}"),
    "misspelt label": ("unpaired", {"prompt": "q", "response": "a", "lable": 1}, "nearest: 'lable'", "columns: {lable: label}"),
    "tags that are no labels": ("unpaired", {"prompt": "q", "response": "a", "tag": "chat"}, "there is no 'label' column", "columns: {tag: label}"),
    "no responses": ("ranked", {"prompt": "q", "chosen": "a"}, "there is no 'responses' column (found: prompt, chosen)", "columns: {your_column: responses}"),
    "one answer as ranked": ("ranked", {"prompt": "q", "output": "a"}, "there is no 'responses' column (found: prompt, output)", "columns: {your_column: responses}"),
    "misspelt responses": ("ranked", {"prompt": "q", "respones": ["a", "b"]}, "nearest: 'respones'", "columns: {respones: responses}"),
    "half a pair beside its responses": ("paired", {"prompt": "q", "choosen": "a", "rejected": "b", "responses": ["a", "b"]}, "there is no 'chosen' column", "columns: {choosen: chosen}"),
}  # fmt: skip

# name: (first row, columns, words of the problem, words of the remedy)
FORMS = {
    "no rejected column": ({"prompt": "q", "chosen": "a"}, None, "there is no 'rejected' column (found: prompt, chosen)", "columns: {your_column: rejected}"),
    "misspelt column": ({"prompt": "q", "choosen": "a", "rejected": "b"}, None, "nearest: 'choosen'", "columns: {choosen: chosen}"),
    "other names": ({"question": "q", "answer_zh": "a", "answer_en": "b"}, None, "there is no 'chosen' column", "columns: {"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, None, "there is no prompt", "columns: {your_column: prompt}"),
    "no columns": ({}, None, "found: none", "columns: {"),
    "two answers without a winner": ({"prompt": "q", "output_1": "a", "output_2": "b"}, None, "there is no column that says which of 'output_1' and 'output_2' is better (found: prompt, output_1, output_2)", "columns: {your_column: winner}"),
    "a winner that may be a name or a place": ({**COMPARED, "label": 0}, None, "the numbers in 'label' do not say by themselves which of 'output_1' and 'output_2' is better", "columns: {label: winner_index} where 0 is the first"),
    "a winner beyond its names": ({**COMPARED, "label": 3}, None, "the numbers in 'label' do not say by themselves", "columns: {label: winner} where 1 is the first"),
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


@pytest.mark.parametrize("name", LAYOUT_ROWS)
def test_a_bad_row_of_any_layout_is_refused_in_one_line(tmp_path, name):
    layout, good, changes, problem, remedy = LAYOUT_ROWS[name]
    (tmp_path / "x.jsonl").write_bytes(lines(good, changed(good, changes), good))
    message = refusal(tmp_path / "x.jsonl", layout=layout)
    assert message.startswith(f"{tmp_path / 'x.jsonl'}[train] row 2: ")
    assert problem in message
    assert remedy in message


@pytest.mark.parametrize("name", LAYOUT_FORMS)
def test_rows_made_for_another_layout_are_refused_in_one_line(tmp_path, name):
    layout, first, problem, remedy = LAYOUT_FORMS[name]
    (tmp_path / "x.jsonl").write_bytes(lines(first))
    message = refusal(tmp_path / "x.jsonl", layout=layout)
    assert message.startswith(f"{tmp_path / 'x.jsonl'}[train] row 1: ")
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


def test_one_bad_row_among_a_hundred_thousand_is_found_or_counted(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines(GOOD) * 60_000 + lines(row(chosen="")) + lines(GOOD) * 39_999)
    assert "row 60001: " in refusal(tmp_path / "x.jsonl")
    skipped = SkippedRows()
    assert len(load_preferences(tmp_path / "x.jsonl", on_bad_row="skip", skipped=skipped)) == 99_999
    assert str(skipped).startswith("1 of 100000 rows skipped: empty answer 1 (")


def test_a_long_name_does_not_fill_the_message(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines({"prompt": "q", "x" * 1_000_000: "a"}))
    assert len(refusal(tmp_path / "x.jsonl")) < 500 + len(str(tmp_path))


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
