"""Whatever a file holds, reading it gives examples or an error of ours: one line, never another exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import Row, load_preferences, to_examples
from preftune.data.formats import KNOWN_COLUMNS
from preftune.errors import PreftuneError
from preftune.types import Origin

SETTINGS = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", " ", "q", "a", "b", "\ud800"])
MESSAGE = st.fixed_dictionaries(
    {}, optional={key: SCALARS | st.sampled_from(["user", "assistant", "gpt"]) for key in ("role", "from", "content")}
)
TURN = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), SCALARS
)
VALUES = SCALARS | MESSAGE | st.lists(TURN | MESSAGE | SCALARS | st.lists(SCALARS, max_size=3), max_size=3)
ROW = st.dictionaries(st.sampled_from(KNOWN_COLUMNS) | st.text(max_size=3), VALUES, max_size=5)
COLUMNS = st.none() | st.dictionaries(
    st.sampled_from(["q", "prompt", "chosen"]), st.sampled_from(["prompt", "x", None])
)


@pytest.mark.parametrize("layout", ["paired", "single"])
def test_any_row_is_an_example_or_refused_in_one_line(layout):
    @SETTINGS
    @given(st.lists(ROW, max_size=3), COLUMNS)
    def check(values, columns):
        rows = [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]
        try:
            examples = to_examples(rows, layout, columns)
        except PreftuneError as error:
            assert "\n" not in str(error)
            str(error).encode()  # can be printed
        else:
            assert all(response.strip() for example in examples for response in example.responses)
            assert all(example.prompt[-1].role == "user" for example in examples)

    check()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.zst"])
def test_any_bytes_are_examples_or_refused_in_one_line(tmp_path, suffix):
    line = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}).encode()
    pieces = st.sampled_from([line, b"\n", b"[", b"]", b"{", b'"', b",", b"\r", b"\x00", b"prompt,chosen,rejected\n"])

    @SETTINGS
    @given(st.lists(pieces | st.binary(max_size=6), max_size=8).map(b"".join))
    def check(content):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        try:
            load_preferences(path)
        except PreftuneError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(str(path))

    check()
