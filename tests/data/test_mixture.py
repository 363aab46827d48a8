"""Mixtures: which rows are taken, in which order, from which split; and what is held out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from preftune.data import load_preferences
from preftune.errors import DataError, RecipeError


def write_pairs(path, letter, count, split=None):
    """A file (of a folder, if a split is named) with the prompts A0, A1, ..."""
    path = path / f"{letter}" / f"{split}.jsonl" if split else path / f"{letter}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{letter}{n}", "chosen": "yes", "rejected": "no"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path.parent if split else path)


def prompts(examples):
    return [example.prompt[-1].content for example in examples]


def numbers(examples, letter):
    return [int(prompt.removeprefix(letter)) for prompt in prompts(examples) if prompt.startswith(letter)]


@pytest.fixture
def two(tmp_path):
    return write_pairs(tmp_path, "A", 10), write_pairs(tmp_path, "B", 10)


def test_the_published_mixture_has_the_published_rows_in_the_published_order(two):
    a, b = two
    mixed = load_preferences({a: 0.55, b: 0.25}, mixer_order="head")
    assert prompts(mixed) == ["A3", "A2", "B1", "A4", "A1", "B0", "A0"]  # the reference repository's own result


def test_a_fraction_is_drawn_by_the_seed(two):
    a, b = two
    mixed = load_preferences({a: 0.5, b: 0.5})
    assert mixed == load_preferences({a: 0.5, b: 0.5})
    assert mixed != load_preferences({a: 0.5, b: 0.5}, seed=1)
    drawn = numbers(mixed, "A")
    assert len(set(drawn)) == 5
    assert sorted(drawn) != [0, 1, 2, 3, 4]
    assert len(numbers(mixed, "B")) == 5


def test_every_row_is_drawn_as_often_as_any_other(tmp_path):
    a = write_pairs(tmp_path, "A", 10)
    counts = [0] * 10
    for seed in range(200):
        for number in numbers(load_preferences(f"{a}#3", seed=seed), "A"):
            counts[number] += 1
    assert sum(counts) == 600
    assert all(30 < count < 90 for count in counts)  # 60 expected, standard deviation 6.5


def test_where_the_files_lie_does_not_change_what_is_drawn(tmp_path):
    (tmp_path / "x").mkdir()
    one, other = write_pairs(tmp_path, "A", 50), write_pairs(tmp_path / "x", "A", 50)
    assert prompts(load_preferences({one: 0.2})) == prompts(load_preferences({other: 0.2}))


@pytest.mark.parametrize(
    ("weight", "repeats"), [(1.0, {1}), (1, {1}), (2.0, {2}), (1.5, {1, 2}), (7, {0, 1}), (25, {2, 3})]
)
def test_a_weight_is_a_fraction_a_repetition_or_a_count(tmp_path, weight, repeats):
    a = write_pairs(tmp_path, "A", 10)
    drawn = numbers(load_preferences({a: weight}), "A")
    expected = weight if isinstance(weight, int) and weight > 1 else int(weight * 10)
    assert len(drawn) == expected
    assert {drawn.count(number) for number in range(10)} == repeats


def test_head_takes_the_first_rows_of_a_count_too(tmp_path):
    a = write_pairs(tmp_path, "A", 10)
    assert prompts(load_preferences(f"{a}#3", mixer_order="head")) == ["A0", "A1", "A2"]


def test_a_weight_of_nothing_leaves_the_set_out(two):
    a, b = two
    assert set(prompts(load_preferences({a: 1.0, b: 0}))) == {f"A{n}" for n in range(10)}
    with pytest.raises(DataError, match="gives no rows for 'train'"):
        load_preferences({a: 0.0})


def test_a_fraction_that_comes_to_no_row_is_refused(tmp_path):
    a = write_pairs(tmp_path, "A", 10)
    with pytest.raises(DataError, match=r"a fraction of 0\.05 of 10 rows is none"):
        load_preferences({a: 0.05})


def test_a_test_split_is_read_whole_and_a_count_holds_for_it_too(tmp_path):
    write_pairs(tmp_path, "A", 10, "train")
    a = write_pairs(tmp_path, "A", 4, "test")
    assert len(load_preferences({a: 0.5})) == 5
    assert len(load_preferences({a: 0.5}, split="test")) == 4
    assert len(load_preferences(f"{a}#2", split="test")) == 2


def test_each_split_gives_its_own_fraction_and_no_set_is_lost(tmp_path):
    """With two train splits the reference repository pairs fractions with splits and drops B."""
    for letter in "AB":
        for split in ("train_a", "train_b"):
            write_pairs(tmp_path, letter, 10, f"{split}-00000-of-00001")
    a, b = str(tmp_path / "A"), str(tmp_path / "B")
    mixed = load_preferences({a: 1.0, b: 0.5}, splits=["train_a", "train_b", "test"], mixer_order="head")
    assert sorted(numbers(mixed, "A")) == sorted([*range(10), *range(10)])
    assert sorted(numbers(mixed, "B")) == sorted([*range(5), *range(5)])


def test_splits_are_told_by_name_or_for_each_source(tmp_path):
    for split in ("train_prefs", "test_prefs", "odd"):
        write_pairs(tmp_path, "A", len(split), f"{split}-00000-of-00001")
    a, b = str(tmp_path / "A"), write_pairs(tmp_path, "B", 3)
    named = ["train_prefs", "test_prefs"]
    assert len(load_preferences(a, splits=named)) == 11
    assert len(load_preferences(a, splits=named, split="test")) == 10
    assert len(load_preferences([a, b], splits={a: "odd"})) == 3 + 3
    assert len(load_preferences(a, splits={a: {"train": "odd", "test": "train_prefs"}}, split="test")) == 11
    assert len(load_preferences(a, split="odd")) == 3
    with pytest.raises(DataError, match="none of its splits in 'dataset_splits' is for test"):
        load_preferences(a, splits=["odd"], split="test")
    with pytest.raises(DataError, match="no split 'gone'"):
        load_preferences(a, splits=["gone"])


def test_a_file_is_one_body_and_is_never_its_own_test_split(tmp_path):
    a = write_pairs(tmp_path, "A", 10)
    assert len(load_preferences(a, splits=["train_a", "train_b", "test"])) == 10
    with pytest.raises(DataError, match=r"has no split 'test'\. Set test_split_size"):
        load_preferences(a, splits=["train", "test"], split="test")


def test_a_source_may_have_settings_of_its_own(tmp_path):
    a = write_pairs(tmp_path, "A", 10)
    other = tmp_path / "other/easy"
    other.mkdir(parents=True)
    (other / "dev.jsonl").write_text('{"q": "B0", "good": "yes", "poor": "no"}\n{"q": "", "good": "a", "poor": "b"}\n')
    settings = {
        "config": "easy",
        "split": {"train": "validation"},
        "columns": {"q": "prompt", "good": "chosen", "poor": "rejected"},
        "on_bad_row": "skip",
        "weight": 2.0,
    }
    mixed = load_preferences({a: 0.1, str(tmp_path / "other"): settings})
    assert sorted(prompts(mixed))[1:] == ["B0", "B0"]
    listed = load_preferences([a, {"id": str(tmp_path / "other"), **settings}])
    assert prompts(listed) == [*(f"A{n}" for n in range(10)), "B0", "B0"]


def test_subsets_are_named_in_the_text_or_beside_it(tmp_path):
    for subset in "xyz":
        write_pairs(tmp_path / "sets" / subset, subset, 2, "train")
    folder = str(tmp_path / "sets")
    assert prompts(load_preferences(f"{folder}:x/z")) == ["x0", "x1", "z0", "z1"]
    assert prompts(load_preferences([folder, folder], configs=["y", None])) == [
        "y0",
        "y1",
        "x0",
        "x1",
        "y0",
        "y1",
        "z0",
        "z1",
    ]
    assert prompts(load_preferences(folder, configs={folder: "y"})) == ["y0", "y1"]


def test_comma_lists_lists_and_paths_are_the_same(two):
    a, b = two
    assert load_preferences(f"{a}, {b}") == load_preferences([a, b]) == load_preferences([Path(a), Path(b)])
    assert prompts(load_preferences(f"{a}#2,{b}#1", mixer_order="head")) == ["A0", "A1", "B0"]


@pytest.mark.parametrize("text", ["A.jsonl", "./A.jsonl", ".//A.jsonl", "./", "../here/A.jsonl#2"])
def test_a_path_may_be_relative(tmp_path, monkeypatch, text):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_pairs(tmp_path / "here", "A", 2)
    assert len(load_preferences(text)) == 2


def test_a_path_may_start_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pairs(tmp_path, "A", 2)
    assert len(load_preferences("~/A.jsonl")) == 2


def test_a_path_that_exists_is_one_whatever_it_holds(tmp_path):
    folder = tmp_path / "a,b=c:d#3"
    folder.mkdir()
    path = write_pairs(folder, "A", 2)
    assert len(load_preferences(path)) == 2
    assert len(load_preferences(str(folder))) == 2


# --- holding out


def test_a_test_split_is_held_out_where_there_is_none(two):
    train = load_preferences(two[0], test_split_size=0.3)
    test = load_preferences(two[0], split="test", test_split_size=0.3)
    assert (len(train), len(test)) == (7, 3)
    assert sorted(prompts(train) + prompts(test)) == sorted(f"A{n}" for n in range(10))
    assert test != load_preferences(two[0], split="test", test_split_size=0.3, seed=1)
    assert len(load_preferences(list(two), split="test", test_split_size=2)) == 4


def test_a_prompt_is_never_on_both_sides(tmp_path):
    rows = [{"prompt": f"q{n % 20}", "chosen": f"yes {n}", "rejected": "no"} for n in range(100)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load_preferences(path, test_split_size=0.2)
    test = load_preferences(path, split="test", test_split_size=0.2)
    assert (len(train), len(test)) == (80, 20)
    assert set(prompts(train)).isdisjoint(prompts(test))
    repeated = {str(path): {"weight": 2.0}}
    assert set(prompts(load_preferences(repeated, test_split_size=0.2))).isdisjoint(
        prompts(load_preferences(repeated, split="test", test_split_size=0.2))
    )


def test_a_test_split_that_is_there_is_used(tmp_path):
    write_pairs(tmp_path, "A", 10, "train")
    a = write_pairs(tmp_path, "A", 4, "test")
    assert len(load_preferences(a, test_split_size=0.5)) == 10
    assert len(load_preferences(a, split="test", test_split_size=0.5)) == 4
    write_pairs(tmp_path, "A", 8, "odd-00000-of-00001")
    assert len(load_preferences(a, split="odd", test_split_size=0.5)) == 8


def test_holding_out_keeps_to_the_split_that_was_asked_for(tmp_path):
    for split, count in (("train", 10), ("odd", 8)):
        write_pairs(tmp_path, "A", count, f"{split}-00000-of-00001")
    assert len(load_preferences(str(tmp_path / "A"), split="odd", test_split_size=0.5)) == 4


def test_a_share_of_less_than_one_prompt_holds_out_one(two):
    assert len(load_preferences(two[0], split="test", test_split_size=0.01)) == 1


@pytest.mark.parametrize("size", [0.99999, 10, 20])
def test_holding_out_nothing_or_everything_is_refused(two, size):
    with pytest.raises(DataError, match=r"A\.jsonl: test_split_size .* of 10 examples \(10 prompts\)"):
        load_preferences(two[0], test_split_size=size)


# --- what is said


def test_the_log_says_what_was_read(two, caplog):
    a, b = two
    with caplog.at_level(logging.INFO, logger="preftune"):
        load_preferences({a: 0.5, b: 3}, test_split_size=0.2)
        load_preferences({a: 3.0}, mixer_order="head")
    text = caplog.text
    assert f"{a}[train]: 5 of 10 rows (a fraction of 0.5, drawn with seed 42)" in text
    assert f"{b}[train]: 3 of 10 rows (3 rows, drawn with seed 42)" in text
    assert "no test split, so 1 of 5 examples are held out (seed 42)" in text
    assert f"{a}[train]: 30 of 10 rows (a fraction of 3, from the start)" in text
    assert "there are only 10 rows for a fraction of 3, so rows are read more than once" in text


def test_a_file_has_no_subsets(two):
    with pytest.raises(RecipeError, match="is one file and has no subset 'easy'"):
        load_preferences(f"{two[0]}:easy#2")


WRONG = {
    "nothing": ([], {}, "'dataset' is empty"),
    "a number": (3, {}, r"'dataset' is a number \(3\)"),
    "a number inside": (["x.jsonl", 3], {}, r"'dataset' names a number \(3\)"),
    "a comma too many": ("x.jsonl,,y.jsonl", {}, "empty place in its comma list"),
    "no rows": ("x.jsonl#0", {}, "asks for no rows"),
    "a weight below nothing": ({"x.jsonl": -0.5}, {}, r"weight of 'x\.jsonl' is -0\.5"),
    "a weight of truth": ({"x.jsonl": True}, {}, r"weight of 'x\.jsonl' is True"),
    "a weight that is no number": ({"x.jsonl": float("nan")}, {}, r"weight of 'x\.jsonl' is nan"),
    "a weight in words": ({"x.jsonl": "half"}, {}, "is 'half'; expected a fraction"),
    "a count with a point": ({"x.jsonl": 5000.0}, {}, "For a count write 5000"),
    "a count and a fraction": ({"x.jsonl#5": 0.5}, {}, "'#5' is a count. Keep one"),
    "a weight for two": ({"x.jsonl,y.jsonl": 0.5}, {}, "gives one weight to"),
    "a setting that is not known": ({"x.jsonl": {"wieght": 1}}, {}, "'wieght', which is not known; nearest: 'weight'"),
    "columns in words": ({"x.jsonl": {"columns": "q"}}, {}, "columns: q; expected a map"),
    "another way with bad rows": ({"x.jsonl": {"on_bad_row": "drop"}}, {}, "expected error or skip"),
    "a subset twice": ("x.jsonl:a", {"configs": ["b"]}, r"given a subset twice \(a, b\)"),
    "subsets for others": ("x.jsonl", {"configs": ["a", "b"]}, "has 2 entries for 1 data sets"),
    "a subset of another": ("x.jsonl", {"configs": {"y.jsonl": "a"}}, "names 'y.jsonl', which 'dataset' does not"),
    "splits that are no names": ("x.jsonl", {"splits": [3]}, r"splits of 'x\.jsonl' are"),
    "a role that is not known": ("x.jsonl", {"splits": {"x.jsonl": {"trian": "a"}}}, "have the key 'trian'"),
    "another order": ("x.jsonl", {"mixer_order": "tail"}, "'mixer_order' is 'tail'"),
    "a seed below nothing": ("x.jsonl", {"seed": -1}, "'seed' is -1"),
    "a test split of one and a half": ("x.jsonl", {"test_split_size": 1.5}, r"'test_split_size' is 1\.5"),
    "a test split of truth": ("x.jsonl", {"test_split_size": True}, "'test_split_size' is True"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_written_wrongly_is_refused_in_one_line(name):
    dataset, arguments, problem = WRONG[name]
    with pytest.raises(RecipeError, match=problem) as caught:
        load_preferences(dataset, **arguments)
    assert "\n" not in str(caught.value)
