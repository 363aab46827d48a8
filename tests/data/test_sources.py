"""Rows from files: every format and compression gives the same rows, with the address a person would look for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
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


def as_csv(rows, delimiter=",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
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
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_every_text_format_gives_the_same_rows_compressed_or_not(tmp_path, suffix, compression):
    data = {
        ".jsonl": as_jsonl(ROWS),
        ".json": json.dumps(ROWS).encode(),
        ".csv": as_csv(ROWS),
        ".tsv": as_csv(ROWS, "\t"),
    }[suffix]
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


@pytest.mark.parametrize("form", ["new_file", "new_stream"])
def test_arrow_files_and_streams_give_the_same_rows(tmp_path, form):
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS * 3)
    with getattr(pyarrow.ipc, form)(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    rows = load_rows(tmp_path / "x.arrow")
    assert values(rows) == ROWS * 3
    assert [row.origin.row for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"ARROW1 and nothing", b"nonsense of some length, really"])
def test_an_arrow_file_that_is_none_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(DataError, match=r"x\.arrow: not a sound Arrow file \([^\n]+\)\. Copy it again") as caught:
        load_rows(write(tmp_path / "x.arrow", content))
    assert "\n" not in str(caught.value)


def test_what_save_to_disk_wrote_gives_its_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    train, test = Dataset.from_list(ROWS * 2), Dataset.from_list(ROWS[:1])
    DatasetDict({"train_prefs": train, "test_prefs": test}).save_to_disk(tmp_path / "pairs", num_proc=None)
    assert values(load_rows(tmp_path / "pairs", "train_prefs")) == ROWS * 2
    assert values(load_rows(tmp_path / "pairs", "test_prefs")) == ROWS[:1]
    with pytest.raises(DataError, match=r"no split 'test'\. Its files give: test_prefs, train_prefs"):
        load_rows(tmp_path / "pairs", "test")


def test_a_single_saved_set_is_the_train_split_and_its_caches_are_not_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (tmp_path / "one/cache-12.arrow").write_bytes((tmp_path / "one/data-00000-of-00001.arrow").read_bytes())
    assert values(load_rows(tmp_path / "one")) == ROWS


def test_sets_saved_side_by_side_are_splits(tmp_path):
    from datasets import Dataset

    for number, split in enumerate(("train", "test")):
        Dataset.from_list(ROWS[number:]).save_to_disk(tmp_path / split)
    assert values(load_rows(tmp_path)) == ROWS
    assert values(load_rows(tmp_path, "test")) == ROWS[1:]


def test_a_saved_set_with_a_spoilt_state_is_refused(tmp_path):
    write(tmp_path / "state.json", b'{"_data_files": 3}')
    with pytest.raises(DataError, match=r"state\.json: '_data_files' lists no file names"):
        load_rows(tmp_path)


def read_from_stdin(data: bytes, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("data", [as_jsonl(ROWS), json.dumps(ROWS, indent=1).encode()])
def test_standard_input_is_read_as_often_as_it_is_asked_for(data):
    code = (
        "from preftune.data import load_rows\n"
        "for _ in range(2): rows = load_rows('-')\n"
        "print(len(rows), rows[1].origin, rows[1].values['prompt'])"
    )
    assert read_from_stdin(data, code) == "2 standard input[train] row 2 b"


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n')
    with pytest.raises(DataError, match=r'line 2, column 1: invalid JSON \(an object has the key "a" twice\)'):
        load_rows(path)


@pytest.mark.parametrize(
    ("files", "subset", "expected"),
    [
        (["a/train.jsonl", "b/train.jsonl"], "b", ["b/train.jsonl"]),
        (["easy-pairs.train.jsonl", "easy-pairs.test.jsonl"], "easy_pairs", ["easy-pairs.train.jsonl"]),
        (["x_train.jsonl", "x_y_train.jsonl"], "x", ["x_train.jsonl"]),
        (["rl/p-00000-of-00002.jsonl", "rl/p-00001-of-00002.jsonl"], "p", None),
    ],
)
def test_a_subset_of_a_folder_is_what_bears_its_name(tmp_path, files, subset, expected):
    for name in files:
        write(tmp_path / name, as_jsonl([{"name": name}]))
    if expected is None:
        with pytest.raises(DataError, match=r"no split 'train'\. Its files give: p"):
            load_rows(tmp_path, subset=subset)
    else:
        assert [row.values["name"] for row in load_rows(tmp_path, subset=subset)] == expected


def test_a_subset_that_is_not_there_names_those_that_are(tmp_path):
    write(tmp_path / "a/train.jsonl", as_jsonl(ROWS))
    with pytest.raises(DataError, match=r"nothing in it is called 'b' \(found: a\)"):
        load_rows(tmp_path, subset="b")


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
