"""Whatever a file holds, reading it gives examples or an error of ours: one line, never another exception."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import Row, load_preferences, to_examples
from preftune.data.bad_rows import SkippedRows
from preftune.data.names import KNOWN_COLUMNS
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
    st.sampled_from(["q", "prompt", "chosen", "label"]),
    st.sampled_from(["prompt", "winner", "winner_index", "x", None]),
)


TEXTS = st.sampled_from(["a", "b", "c"])
DIALOGUES = st.lists(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "Hum:", " a", "b", " "]), max_size=7).map("".join)
LISTS = st.sampled_from(["[{", '[{"role": "user"}]', "[{'role': 'assistant', 'content': 'a'}]", "[{}, nan]", "[{1: 2"])


def mostly(good, other=VALUES):
    """`good`, and now and then `other`: what is random throughout is refused at the first look."""
    return st.integers(0, 7).flatmap(lambda n: other if n == 0 else good)


NUMBERS = st.lists(mostly(st.integers(-2, 9), SCALARS | st.sampled_from([10**400, "3"])), min_size=2, max_size=3)
OBJECT = st.fixed_dictionaries(
    {"response": mostly(TEXTS)}, optional={"overall_score": SCALARS, "score": SCALARS, "rank": SCALARS, "role": SCALARS}
)
RESPONSES = st.lists(mostly(TEXTS, VALUES | OBJECT), min_size=2, max_size=3, unique_by=str) | st.lists(OBJECT)
LIKELY = {
    "unpaired": st.fixed_dictionaries(
        {"prompt": st.just("q"), "response": mostly(TEXTS), "label": mostly(st.sampled_from([True, 0, "false"]))},
        optional={"tag": VALUES, "rejected": VALUES},
    ),
    "ranked": st.fixed_dictionaries(
        {"prompt": st.just("q"), "responses": mostly(RESPONSES)},
        optional={"scores": mostly(NUMBERS), "ranks": mostly(NUMBERS), "chosen": VALUES},
    ),
    "paired": st.fixed_dictionaries(
        {"prompt": st.just("q"), "chosen": TEXTS, "rejected": TEXTS},
        optional=dict.fromkeys(("margin", "chosen_score", "rejected_score", "label"), SCALARS),
    ),
    "compared": st.fixed_dictionaries(
        {"prompt": st.just("q"), "output_1": TEXTS, "output_2": mostly(TEXTS)},
        optional={"label": mostly(st.sampled_from([0, 1, 2, 1.5, "2", "output_1", "tie"])), "annotator1": SCALARS},
    ),
    "transcripts": st.fixed_dictionaries(
        {
            "chosen": DIALOGUES.map("\n\nHuman: q\n\nAssistant: {}".format),
            "rejected": mostly(DIALOGUES.map("Human: q\n\nAssistant:{}".format), DIALOGUES | VALUES),
        },
        optional={"prompt": DIALOGUES},
    ),
    "written lists": st.fixed_dictionaries({"prompt": LISTS, "chosen": LISTS | TEXTS, "rejected": LISTS | TEXTS}),
    "several rejected": st.fixed_dictionaries(
        {"prompt": st.just("q"), "chosen": st.just("a"), "rejected": st.lists(mostly(TEXTS), max_size=3)}
    ),
}


def best_first(example) -> bool:
    return not example.scores or list(example.scores) == sorted(example.scores, reverse=True)


HOLDS = {
    "single": lambda example: len(example.responses) == 1 and not example.scores,
    "paired": lambda example: len(example.responses) == 2 and len(example.scores) in (0, 2),
    "unpaired": lambda example: len(example.responses) == 1 and example.scores in ((1.0,), (0.0,)),
    "ranked": lambda example: len(example.responses) >= 2 and best_first(example),
}


@pytest.mark.parametrize("rows_near", ["anything", *LIKELY])
@pytest.mark.parametrize("layout", ["paired", "single", "unpaired", "ranked"])
def test_any_row_is_an_example_or_refused_in_one_line(layout, rows_near):
    @SETTINGS
    @given(
        st.lists(LIKELY.get(rows_near, ROW), max_size=3),
        COLUMNS,
        st.sampled_from(["best_worst", "all"]),
        st.sampled_from(["error", "skip"]),
    )
    def check(values, columns, ranked_pairs, on_bad_row):
        rows = [Row(value, Origin("x.jsonl", "train", number)) for number, value in enumerate(values, 1)]
        skipped = SkippedRows()
        try:
            examples = to_examples(
                rows, layout, columns, ranked_pairs=ranked_pairs, on_bad_row=on_bad_row, skipped=skipped
            )
        except PreftuneError as error:
            assert "\n" not in str(error)
            str(error).encode()  # can be printed
        else:
            assert skipped.read == len(rows)
            assert skipped.total == 0 or on_bad_row == "skip"
            assert len({example.origin for example in examples}) == len(rows) - skipped.total > 0
            assert all(response.strip() for example in examples for response in example.responses)
            assert all(example.prompt[-1].role == "user" for example in examples)
            assert all(HOLDS[layout](example) for example in examples)
            assert all(len(example.scores) in (0, len(example.responses)) for example in examples)
            assert all(math.isfinite(score) for example in examples for score in example.scores)

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
