"""Rows read one by one are those of the whole-file road, with its addresses and its error lines, in little memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from itertools import islice

import pytest

from preftune.data import load_rows
from preftune.data import stream as streaming
from preftune.data.stream import find_parts, fingerprint, read_records
from preftune.errors import DataError, PreftuneError
from tests.data.test_sources import ROWS, as_csv, as_jsonl, write

TEXTS = {
    "plain.jsonl": as_jsonl(ROWS),
    "bom, blank lines, CRLF.jsonl": b"\xef\xbb\xbf" + as_jsonl(ROWS).replace(b"\n", b"\r\n\n"),
    "no last line end.jsonl": as_jsonl(ROWS).rstrip(),
    "plain.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "old line ends.csv": b"prompt,chosen,rejected\ra,b,c\rd,e,f\r",
    "plain.tsv": as_csv(ROWS, "\t"),
}


def packed(data: bytes, compression: str) -> bytes:
    if compression == ".zst":
        zstandard = pytest.importorskip("zstandard")
        return zstandard.compress(data[:30]) + zstandard.compress(data[30:])
    return gzip.compress(data[:30]) + gzip.compress(data[30:]) if compression == ".gz" else data


def whole(path):
    return [(row.origin.row, row.values) for row in load_rows(path)]


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", TEXTS)
def test_rows_and_their_numbers_are_those_of_the_whole_file(tmp_path, monkeypatch, name, compression, piece):
    monkeypatch.setattr(streaming, "PIECE", piece)
    path = write(tmp_path / (name + compression), packed(TEXTS[name], compression))
    assert list(read_records(path)) == whole(path)
    assert list(read_records(path, skip=1)) == whole(path)[1:]
    assert list(read_records(path, skip=9)) == []


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_are_read_in_slices(tmp_path, suffix):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"prompt": [f"p{n}" for n in range(3000)], "chosen": ["c"] * 3000})
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert list(read_records(path, skip=2990)) == whole(path)[2990:]
    assert len(whole(path)) == 3000


GOOD = as_jsonl(ROWS)
BROKEN = {
    "json.jsonl": GOOD + b'{"prompt": \n' + GOOD,
    "key twice.jsonl": GOOD + b'{"a": 1, "a": 2}\n',
    "not an object.jsonl": GOOD + b"5\n",
    "latin1.jsonl": GOOD + b'{"prompt": "\xe9"}\n',
    "bom and latin1.jsonl": b"\xef\xbb\xbf" + GOOD + b'{"prompt": "\xe9"}\n',
    "utf-16.jsonl": GOOD.decode().encode("utf-16"),
    "gzip without its name.jsonl": gzip.compress(GOOD),
    "truncated.jsonl.gz": gzip.compress(GOOD * 50)[:-20],
    "no gzip.jsonl.gz": GOOD,
    "cells.csv": as_csv(ROWS) + b"a,b\n",
    "quotes.csv": as_csv(ROWS) + b'a,"b"c,d\n',
    "header.csv": b"a,a\n1,2\n",
    "no zstd.jsonl.zst": GOOD,
    "table.parquet": GOOD,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_in_the_words_of_the_whole_file(tmp_path, name):
    path = write(tmp_path / name, BROKEN[name])
    with pytest.raises(DataError) as expected:
        load_rows(path)
    with pytest.raises(DataError) as found:
        list(read_records(path))
    assert str(found.value) == str(expected.value)


def test_a_truncated_zstd_file_is_refused(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = write(tmp_path / "x.jsonl.zst", zstandard.compress(as_jsonl(ROWS * 50))[:-20])
    with pytest.raises(DataError, match="truncated"):
        list(read_records(path))


def test_a_list_under_the_name_of_lines_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", json.dumps(ROWS).encode())
    with pytest.raises(DataError, match=r"x.jsonl line 1: the file is a list, .* Write one object a line"):
        list(read_records(path))


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_no_more_is_read_than_the_rows_asked_for(tmp_path, monkeypatch, compression):
    noise = random.Random(0)
    data = as_jsonl([{"prompt": f"{noise.getrandbits(400):x}"} for _ in range(5000)])
    path = write(tmp_path / f"x.jsonl{compression}", packed(data, compression))
    read, pieces = [], streaming._pieces

    def counting(file):
        for piece in pieces(file):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(streaming, "_pieces", counting)
    monkeypatch.setattr(streaming, "PIECE", 4096)
    assert len(list(islice(read_records(path), 20))) == 20
    assert sum(read) < len(data) / (2 if compression == ".zst" else 20)  # zstd decodes blocks of 128 KiB


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    rows = [{"prompt": "x" * 1000, "chosen": str(n), "rejected": "y" * 1000} for n in range(5000)]
    data = as_csv(rows) if suffix == ".csv" else as_jsonl(rows)
    path = write(tmp_path / f"x{suffix}", gzip.compress(data, 1) if suffix.endswith(".gz") else data)
    size, rows, data = len(data), None, None
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < size / 10
    finally:
        tracemalloc.stop()


def test_folders_and_lists_give_their_training_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/train-00000-of-00002.jsonl", "d/train-00001-of-00002.jsonl.gz", "d/test.jsonl", "e.csv"):
        write(tmp_path / name, b"")
    parts = find_parts(["d", "e.csv"])
    found = [[path.name for path, _ in part.files] for part in parts]
    assert found == [["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl.gz"], ["e.csv"]]


REFUSED = {
    "-": "standard input, which passes once",
    "a.jsonl#3": "'#3' asks for a part",
    "owner/name": "is on the hub. Download it",
    "b.json": "Write one object a line and name it .jsonl",
    "absent.jsonl": "there is no such file",
    "x.txt": "files ending in '.txt' cannot be read",
}


@pytest.mark.parametrize("dataset", [*REFUSED, {"a.jsonl": 0.5}])
def test_what_cannot_be_streamed_is_one_line(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.json", "x.txt"):
        write(tmp_path / name, as_jsonl(ROWS))
    with pytest.raises(PreftuneError) as refused:
        find_parts(dataset)
    assert REFUSED.get(str(dataset), "'weight 0.5' asks for a part") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_content_is_another_fingerprint(tmp_path):
    one, two = write(tmp_path / "a.jsonl", b"a"), write(tmp_path / "b" / "a.jsonl", b"b")
    assert fingerprint([one]) != fingerprint([two])
    assert fingerprint([one]) == fingerprint([write(tmp_path / "c" / "a.jsonl", b"a")])
