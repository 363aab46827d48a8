"""Pairs from scored answers: which two are taken, what is left out and counted, and that training reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from datasets import load_dataset, load_from_disk

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.errors import DataError, RecipeError
from preftune.onpolicy.choose import NoPairError, Rule
from preftune.onpolicy.pairs import make_pairs
from preftune.types import Layout, Message


def row(prompt, responses, scores, **more):
    return {"prompt": prompt, "responses": responses, "scores": scores, **more}


ROWS = [
    row("colour?", ["red", "blue", "green"], [0.5, 2, 1]),
    row("river?", ["Po", "Po"], [1, 1]),
    row("sea?", ["Kara", "Ross"], [1, 1]),
    row("city?", ["Rome", "Bonn", "Oslo"], [None, 3, -1]),
    row("lake?", ["Como", "Eyre"], [None, 3]),
    row("hill?", ["Etna"], [1]),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(rows):
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


@pytest.fixture
def many(tmp_path):
    draw = random.Random(0)
    rows = [
        row(
            f"question {n}",
            [f"{'a' * draw.randint(1, 9)} {place}" for place in range(4)],
            [draw.random() for _ in "1234"],
        )
        for n in range(60)
    ]
    return write(tmp_path / "many.jsonl", rows)


def test_best_against_worst_and_the_reasons_of_the_rest(tmp_path):
    report = make_pairs(write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", test_share=0)
    assert texts(read(tmp_path / "out.jsonl")) == [("blue", "red"), ("Bonn", "Oslo")]
    assert report == json.loads((tmp_path / "out.jsonl.report").read_text())
    assert (report["rows"], report["kept"], report["answers"], report["answers_without_score"]) == (6, 2, 13, 2)
    assert report["dropped"] == {
        "all answers identical": 1,
        "all scores equal": 1,
        "fewer than 2 different answers with a score": 1,
        "only one answer": 1,
    }
    assert report["margin"] == pytest.approx((1.5 + 4) / 2)
    assert (report["chosen_length"], report["rejected_length"], report["chosen_longer"]) == (4, 3.5, 0.5)


def test_equal_answers_with_two_scores_count_once_with_their_mean():
    chosen, rejected = Rule().pair(["a", "b", "a"], [9, 4, 0], "p")
    assert (chosen.text, chosen.score, rejected.text) == ("a", 4.5, "b")


def test_a_margin_that_is_too_small_gives_no_pair():
    assert Rule(min_margin=1).pair(["a", "b"], [1, 2], "p")[0].text == "b"
    with pytest.raises(NoPairError, match="margin too small"):
        Rule(min_margin=1.01).pair(["a", "b"], [1, 2], "p")


def test_length_controlled_takes_the_closest_lengths_near_both_ends():
    answers, scores = ["x" * 90, "x" * 31, "x" * 50, "x" * 30, "x" * 5], [10, 9, 5, 1.5, 0]
    chosen, rejected = Rule("length-controlled", band=0.2).pair(answers, scores, "p")
    assert (chosen.score, rejected.score) == (9, 1.5)
    chosen, rejected = Rule("length-controlled", band=0).pair(answers, scores, "p")
    assert (chosen.score, rejected.score) == (10, 0)
    chosen, rejected = Rule("length-controlled", band=1, min_margin=9.5).pair(answers, scores, "p")
    assert (chosen.score, rejected.score) == (10, 0)


def test_best_random_is_seeded_by_the_prompt_and_never_takes_an_equal_score():
    answers, scores = [f"{n}" for n in range(6)], [5, 5, 1, 2, 3, 4.5]
    taken = [Rule("best-random", min_margin=1).pair(answers, scores, f"p{n}")[1].score for n in range(40)]
    assert set(taken) == {1, 2, 3}
    assert taken == [Rule("best-random", min_margin=1).pair(answers, scores, f"p{n}")[1].score for n in range(40)]


@pytest.mark.parametrize("choose", ["best-worst", "length-controlled", "best-random"])
def test_the_split_and_the_pairs_do_not_depend_on_the_order_of_the_rows(many, tmp_path, choose):
    report = make_pairs(many, tmp_path / "one", rule=Rule(choose), test_share=0.3)
    rows = read(many)
    random.Random(1).shuffle(rows)
    make_pairs(write(tmp_path / "shuffled.jsonl", rows), tmp_path / "two", rule=Rule(choose), test_share=0.3)
    for part in ("train", "test"):
        one, two = (read(tmp_path / folder / f"{part}.jsonl") for folder in ("one", "two"))
        assert sorted(map(str, one)) == sorted(map(str, two)) and len(one) == report[part]
        assert all(row["chosen_score"] > row["rejected_score"] for row in one)
    assert 8 <= report["test"] <= 28
    assert not {row["prompt_id"] for row in read(tmp_path / "one" / "train.jsonl")} & {row["prompt_id"] for row in one}


def test_training_reads_the_folder(many, tmp_path):
    report = make_pairs(many, tmp_path / "pairs", test_share=0.2)
    for part in ("train", "test"):
        examples = load_preferences(str(tmp_path / "pairs"), split=part, layout=Layout.PAIRED)
        written = read(tmp_path / "pairs" / f"{part}.jsonl")
        assert [example.responses for example in examples] == texts(written)
        assert [example.scores for example in examples] == [(r["chosen_score"], r["rejected_score"]) for r in written]
        assert len(examples) == report[part]


def test_conversations_tools_system_and_weight_come_through(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        row(turns, ["é 好", "no"], [1, 0], tools=[tool], weight=2.0, system=""),
        row("plain", ["yes", "no"], [0, 1], weight=1.0),
    ]
    make_pairs(write(tmp_path / "in.jsonl", rows), tmp_path / "out", test_share=0)
    first, second = load_preferences(str(tmp_path / "out"), layout=Layout.PAIRED)
    assert [turn.content for turn in first.prompt] == ["a", "b", "c"] and first.responses == ("é 好", "no")
    assert json.loads(first.tools)[0]["function"]["name"] == "f" and first.weight == 2 and first.no_system
    assert second.prompt == (Message("user", "plain"),) and second.responses == ("no", "yes") and not second.no_system


@pytest.mark.parametrize("format", ["parquet", "save_to_disk"])
def test_others_can_read_the_pairs(many, tmp_path, format):
    report = make_pairs(many, tmp_path / "pairs", test_share=0.2, format=format)
    folder = tmp_path / "pairs"
    parts = {part: str(folder / f"{part}.parquet") for part in ("train", "test")}
    found = load_from_disk(str(folder)) if format == "save_to_disk" else load_dataset("parquet", data_files=parts)
    make_pairs(many, tmp_path / "plain", test_share=0.2)
    for part in ("train", "test"):
        assert found[part].to_list() == read(tmp_path / "plain" / f"{part}.jsonl") and len(found[part]) == report[part]


def test_a_pair_that_comes_again_is_left_out(tmp_path):
    report = make_pairs(write(tmp_path / "in.jsonl", [ROWS[0], ROWS[0]]), tmp_path / "out.jsonl", test_share=0)
    assert (report["kept"], report["dropped"], report["prompts_repeated"]) == (1, {"the same pair again": 1}, 1)


def test_a_second_call_replaces_the_files_of_the_first(many, tmp_path):
    make_pairs(many, tmp_path / "pairs", test_share=0.3)
    make_pairs(many, tmp_path / "pairs", test_share=0)
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == ["pairs-report.json", "train.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl", "pairs"]


@pytest.mark.parametrize("output", ["pairs", "pairs.jsonl"])
def test_files_with_names_like_ours_beside_the_output_are_left_alone(many, tmp_path, output):
    (tmp_path / f"{output}.old").mkdir()
    mine = [tmp_path / f"{output}.old" / "precious.txt", tmp_path / f"{output}.part"]
    for file in mine:
        file.write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    for _ in range(2):
        make_pairs(many, tmp_path / output, test_share=0)
        assert [file.read_text() for file in mine] == ["mine", "mine"]
    made = {output} if output == "pairs" else {output, f"{output}.report"}
    assert {path.name for path in tmp_path.iterdir()} == before | made


@pytest.mark.parametrize("there", ["out.jsonl", "out.jsonl.report"])
def test_a_single_file_that_pairs_has_not_written_is_not_replaced(many, tmp_path, there):
    (tmp_path / there).write_text('{"prompt": "mine"}\n')
    with pytest.raises(DataError, match=f"{there}: .*Give another --output"):
        make_pairs(many, tmp_path / "out.jsonl", test_share=0)
    assert (tmp_path / there).read_text() == '{"prompt": "mine"}\n' and not list(tmp_path.glob(".out*"))


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(many, tmp_path, monkeypatch):
    make_pairs(many, tmp_path / "pairs", test_share=0)
    replace = Path.replace

    def fail(path, target):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="No space left"):
        make_pairs(many, tmp_path / "pairs", test_share=0.3)
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == ["pairs-report.json", "train.jsonl"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": [1, 2]}, "row 2: 'scores' holds 2 scores for 3 responses"),
        ({"scores": [1, 2, "high"]}, "row 2: 'scores' item 3 is "),
        ({"scores": [1, float("nan"), 2]}, "row 2: 'scores' item 2 is NaN, expected a finite number"),
        ({"scores": None}, "row 2: 'scores' is null"),
        ({"responses": ["a", "", "b"]}, "row 2: the answer in 'responses' item 2 is empty"),
        ({"prompt": None}, "row 2: 'prompt' is null"),
    ],
)
def test_a_wrong_row_is_named_with_its_field(tmp_path, changed, said):
    rows = [ROWS[0], {**ROWS[0], **changed}]
    with pytest.raises(DataError) as error:
        make_pairs(write(tmp_path / "in.jsonl", rows), tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_before_anything_is_written(many, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes.txt"):
        make_pairs(many, tmp_path / "full")
    with pytest.raises(DataError, match="holds the file that is read"):
        make_pairs(many, many, test_share=0)
    with pytest.raises(RecipeError, match="cannot be split"):
        make_pairs(many, tmp_path / "one.jsonl", test_share=0.1)
    with pytest.raises(DataError, match="no pair is left of 1 rows"):
        make_pairs(write(tmp_path / "tie.jsonl", [ROWS[1]]), tmp_path / "out")
    for setting in ({"choose": "worst"}, {"min_margin": -1}, {"min_margin": float("nan")}, {"band": 2}):
        with pytest.raises(RecipeError):
            Rule(**setting)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine" and len(read(many)) == 60


def test_the_verb_prints_the_report_and_errors_are_one_line(many, tmp_path, capsys):
    assert main(["pairs", str(many), "--output", str(tmp_path / "out")]) == 0
    assert "chosen longer" in capsys.readouterr().out
    assert main(["pairs", str(many), "--output", str(tmp_path / "out"), "--choose", "best-random", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 60
    assert main(["pairs", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
