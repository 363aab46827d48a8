"""Rows from files: every format and compression gives the same rows, with the address a person would look for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import pytest

from preftune.data import load_rows
from preftune.errors import DataError, MissingExtraError

ROWS = [
    {"prompt": "你好\u2028", "chosen": 'Hi, "you"', "rejected": "two\nlines"},
    {"prompt": "b", "chosen": "c", "rejected": "🙂"},
]


def as_jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def write(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def values(rows):
    return [row.values for row in rows]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_every_text_format_gives_the_same_rows_compressed_or_not(tmp_path, suffix, compression):
    data = {".jsonl": as_jsonl, ".json": lambda rows: json.dumps(rows).encode(), ".csv": as_csv}[suffix](ROWS)
    if compression == ".zst":
        zstandard = pytest.importorskip("zstandard")
        data = zstandard.compress(data[:30]) + zstandard.compress(data[30:])  # two frames, as parallel writers leave
    packed = gzip.compress(data) if compression == ".gz" else data
    assert values(load_rows(write(tmp_path / f"x{suffix}{compression}", packed))) == ROWS


def test_parquet_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    rows = load_rows(tmp_path / "x.parquet")
    assert values(rows) == ROWS
    assert rows[1].origin.row == 2


def test_a_jsonl_row_is_addressed_by_its_line_and_blank_lines_count(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"a": 1}\n\n  \n{"a": 2}')
    assert [row.origin.row for row in load_rows(path)] == [1, 4]


def test_a_csv_row_is_addressed_by_its_number_below_the_header(tmp_path):
    rows = load_rows(write(tmp_path / "x.csv", as_csv(ROWS)), split="test")
    assert str(rows[1].origin) == f"{tmp_path / 'x.csv'}[test] row 2"


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    jsonl = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + as_jsonl(ROWS).replace(b"\n", b"\r\n"))
    table = write(tmp_path / "x.csv", b"\xef\xbb\xbfprompt,chosen,rejected\r\na,b,c\r\n")
    assert values(load_rows(jsonl)) == ROWS
    assert values(load_rows(table)) == [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def test_json_lines_and_json_lists_are_understood_under_each_others_names(tmp_path):
    assert values(load_rows(write(tmp_path / "lines.json", as_jsonl(ROWS)))) == ROWS
    assert values(load_rows(write(tmp_path / "list.jsonl", json.dumps(ROWS, indent=1).encode()))) == ROWS


def test_a_csv_cell_may_be_longer_than_pythons_own_limit(tmp_path):
    path = write(tmp_path / "x.csv", b"prompt\n" + b"a" * 200_000)
    before = csv.field_size_limit()
    assert len(load_rows(path)[0].values["prompt"]) == 200_000
    assert csv.field_size_limit() == before


def test_a_line_of_ten_megabytes_is_read(tmp_path):
    path = write(tmp_path / "x.jsonl", as_jsonl([{"prompt": "a" * 10_000_000}]))
    assert len(load_rows(path)[0].values["prompt"]) == 10_000_000


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["x.train.jsonl", "x.eval.jsonl"], "train", ["x.train.jsonl"]),
        (["x.train.jsonl", "x.eval.jsonl"], "validation", ["x.eval.jsonl"]),
        (["eval_train.jsonl", "README.md"], "train", ["eval_train.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], "test", ["test/a.jsonl"]),
        (["train_a-00000-of-00002.jsonl", "train_b-00000-of-00001.jsonl"], "train_a", ["train_a-00000-of-00002.jsonl"]),
        ([".cache/train.jsonl", "train.jsonl"], "train", ["train.jsonl"]),
    ],
)  # fmt: skip
def test_a_folder_gives_the_files_of_the_split(tmp_path, files, split, expected):
    for name in files:
        write(tmp_path / name, as_jsonl([{"name": name}]))
    rows = load_rows(tmp_path, split)
    assert [row.values["name"] for row in rows] == expected
    assert rows[0].origin.dataset == str(tmp_path / expected[0])


def test_a_missing_split_names_those_that_are_there(tmp_path):
    write(tmp_path / "train.jsonl", as_jsonl(ROWS))
    with pytest.raises(DataError, match=r"no split 'test'.*train"):
        load_rows(tmp_path, "test")


def test_a_missing_zstandard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"preftune\[zstd\]"):
        load_rows(write(tmp_path / "x.jsonl.zst", b"\x28\xb5\x2f\xfd"))
