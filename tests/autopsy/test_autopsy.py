"""`preftune autopsy`: what the lists hold, by hand-made trajectories and texts, and from a run to a cleaned set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from preftune import train
from preftune.autopsy import examine
from preftune.autopsy.clean import to_rows
from preftune.autopsy.findings import fit_length, kind
from preftune.autopsy.neighbours import PLACES, Texts, find_contradictions
from preftune.autopsy.trajectories import Trajectory, read_trajectories
from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.errors import DataError
from tests.train.test_run import PAIRS, model_folder, work, write_rows  # noqa: F401 (fixtures)


def trajectory(*margins, chosen=10, rejected=10, row=1):
    return Trajectory("d[train]", row, 0, chosen, rejected, tuple(range(1, len(margins) + 1)), margins)


class LargestTensor(TorchDispatchMode):
    """Of those that are made within."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            self.elements = max(self.elements, one.numel() if isinstance(one, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize(
    ("margins", "wanted"),
    [
        ((-1.0, -0.5, -0.1), "never"),
        ((0.0, 0.0), "never"),  # a tie is not right
        ((float("nan"),), "never"),
        ((-1.0, 0.5, -0.1), "lost"),
        ((0.5, -0.1), "lost"),
        ((-1.0, 0.5), "gained"),
        ((0.0, 0.5), "gained"),  # DPO starts at 0
        ((0.1, -0.5, 0.5), "right"),
        ((0.1,), "right"),
    ],
    ids=str,
)
def test_every_pair_is_in_one_class(margins, wanted):
    assert kind(trajectory(*margins)) == wanted


def test_length_is_fitted_to_the_last_margins():
    """m = 1 + 0.5 l exactly: three tokens more are 1.5 of the margin."""
    pairs = [trajectory(9.0, 1 + 0.5 * n, chosen=10 + n) for n in (-4, -1, 0, 3)]
    fit = fit_length(pairs)
    assert (fit.slope, fit.explained) == pytest.approx((0.5, 1.0))
    assert fit.without_length(pairs[-1]) == pytest.approx(1.0)
    assert not any(map(fit.alone, pairs))
    assert fit.alone(trajectory(1.4, chosen=13))  # 1.4 - 1.5 is not above 0
    assert not fit.alone(trajectory(-1.4, chosen=13))  # it is wrong


@pytest.mark.parametrize(
    "pairs", [[], [trajectory(1.0)], [trajectory(1.0)] * 4, [trajectory(1.0, chosen=n) for n in (1, 2, 3)]], ids=len
)
def test_what_does_not_differ_explains_nothing(pairs):
    assert (fit_length(pairs).slope, fit_length(pairs).explained) == (0.0, 0.0)


CAT = Texts("Describe a cat.", "A small soft animal that sleeps on the warm stove.", "It has wheels and an engine.")
EXCHANGED = Texts(CAT.prompt, CAT.rejected, CAT.chosen)
OTHERS = [Texts(f"Name the river number {n}.", f"river {n} is the Elbe{n}", f"mountain {n} high") for n in range(6)]


def test_the_same_pair_exchanged_contradicts():
    found = find_contradictions([CAT, *OTHERS, EXCHANGED])
    assert set(found) == {0, 7}
    assert found[0].other == 7 and found[0].exact and found[0].against == 1 and found[0].agreeing == 0
    assert found[0].cosine == pytest.approx(-1.0, abs=1e-5)


def test_one_against_many_is_the_one_that_contradicts():
    found = find_contradictions([CAT, CAT, CAT, EXCHANGED, *OTHERS])
    assert set(found) == {3}
    assert (found[3].against, found[3].agreeing) == (3, 0)


def test_near_duplicates_of_prompt_and_responses_are_neighbours():
    near = Texts("Describe a cat!", "It has wheels and a big engine.", "A small animal that sleeps on the warm stove.")
    found = find_contradictions([CAT, *OTHERS, near])
    assert set(found) == {0, 7}
    assert not found[0].exact and -1 < found[0].cosine <= -0.5


def test_short_answers_to_other_questions_do_not_contradict():
    questions = ["Is water wet?", "Can pigs fly over mountains?", "Does the sun rise in the east?", "Are stones soft?"]
    answers = [("Yes", "No"), ("No", "Yes"), ("Yes", "No"), ("No", "Yes")]
    assert find_contradictions([Texts(q, *own) for q, own in zip(questions, answers, strict=True)]) == {}


def test_answers_that_are_all_alike_take_the_memory_of_their_pairs():
    """Every pair prefers as every other; no tensor has a vector for each two of them."""
    pairs = [Texts(f"Is {n} a number, {n}{n}?", *("Yes", "No")[:: (-1) ** n]) for n in range(60)]
    with LargestTensor() as held:
        find_contradictions(pairs)
    assert held.elements == 60 * PLACES


def test_words_of_chinese_are_its_characters():
    pair = Texts("猫是什么？", "猫是一种小动物，喜欢睡觉。", "汽车有四个轮子。")
    assert set(find_contradictions([pair, Texts(pair.prompt, pair.rejected, pair.chosen), *OTHERS])) == {0, 1}


def test_nothing_and_one_pair_contradict_nothing():
    assert find_contradictions([]) == find_contradictions([CAT]) == {}


# --- from a run


@pytest.fixture
def run(work):  # noqa: F811
    """Three epochs of 17 pairs, the last being the first exchanged."""
    turned = {"prompt": PAIRS[0]["prompt"], "chosen": PAIRS[0]["rejected"], "rejected": PAIRS[0]["chosen"]}
    write_rows(Path("pairs.jsonl"), [*PAIRS, turned])
    changes = {"num_train_epochs": 3, "max_steps": -1, "test_split_size": 2, "save_strategy": "epoch"}
    changes |= {"save_total_limit": 5}
    train(None, **{**work, **changes, "learning_rate": 3e-3, "watch": False})
    return Path("run")


def test_from_a_run_to_a_cleaned_set(run, work, capsys):  # noqa: F811
    held_out = load_preferences("pairs.jsonl", split="test", test_split_size=2)
    trained = 17 - len(held_out)
    assert main(["autopsy", "run", "--drop", "contradict,never", "--output", "clean", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["pairs"], record["visits"]) == (trained, 3 * trained)
    assert [one["visit"] for one in record["by_visit"]] == [1, 2, 3]
    both = [one for one in record["lists"]["contradict"] if one["neighbour"]["exchanged"]]
    assert [one["row"] for one in both] in ([], [1, 17], [17, 1])  # unless one of them is held out
    classes = sum(record["counts"][name] for name in ("never", "lost", "gained"))
    assert classes <= trained
    clean = record["clean"]
    gone = {one["row"] for name in ("contradict", "never") for one in record["lists"][name]}
    assert (clean["rows"], clean["kept"], clean["test"]) == (trained, trained - len(gone), len(held_out))
    kept = [example.responses for example in load_preferences("clean")]
    assert kept == [
        example.responses
        for example in load_preferences("pairs.jsonl", test_split_size=2)
        if example.origin.row not in gone
    ]
    page = (run / "autopsy.md").read_text()
    assert "## contradict:" in page and "| 3 |" in page
    lines = [json.loads(line) for line in (run / "autopsy-pairs.jsonl").read_text().splitlines()]
    assert len(lines) == trained and all(len(line["margins"]) == 3 for line in lines)
    assert main(["train", "run/recipe.yaml", "dataset=clean", "output_dir=again", "num_train_epochs=1"]) == 0
    assert json.loads(Path("again/summary.json").read_text())["rows"] == clean["kept"]
    write_rows(Path("pairs.jsonl"), PAIRS[:5])
    with pytest.raises(
        DataError, match=rf"\d+ of the {trained} pairs that were trained on are not in the data any more"
    ):
        examine("run")


def test_checkpoints_score_every_row_from_the_start_on(run):
    found = examine(run, checkpoints=True)
    steps = found.pairs[0].steps
    assert len(steps) == 4 and steps[0] == 0  # the start, and a checkpoint an epoch
    first = {pair.key: pair for pair in read_trajectories(run)}
    step_one = [pair for pair in found.pairs if first[pair.key].steps[0] == 1]
    assert step_one  # seen by the start's weights
    for pair in step_one:
        assert pair.margins[0] == pytest.approx(first[pair.key].margins[0], rel=1e-3, abs=1e-4)
    others = examine(run, data="pairs.jsonl")  # all of it: the part that the run held out is the run's affair
    assert len(others.pairs) == len(others.examples) == 17
    assert {pair.key for pair in found.pairs} < {pair.key for pair in others.pairs}


def test_rows_that_stand_elsewhere_now_are_not_taken_for_those_of_the_run(work):  # noqa: F811
    train(None, **work, watch=False)
    assert len(examine("run").pairs) == 16
    write_rows(Path("pairs.jsonl"), PAIRS[::-1])
    with pytest.raises(DataError, match="16 of the 16 pairs that were trained on are not in the data any more"):
        examine("run")


def test_rows_with_more_and_fewer_responses_are_read_back_from_one_file(tmp_path):
    rows = [{"prompt": f"{n}?", "responses": ["one", "two", "three"][:n]} for n in (3, 2, 3)]
    write_rows(tmp_path / "ranked.jsonl", rows)
    ranked = load_preferences(tmp_path / "ranked.jsonl", layout="ranked")
    write_rows(tmp_path / "again.jsonl", to_rows(ranked))
    again = load_preferences(tmp_path / "again.jsonl", layout="ranked")
    assert [example.responses for example in again] == [example.responses for example in ranked]


def test_rows_with_several_pairs_are_told_apart(work, capsys):  # noqa: F811
    rows = [{"prompt": f"Count to {n}.", "responses": [f"加 {n}", "it is", "等 于"][:: (-1) ** n]} for n in range(4)]
    write_rows(Path("pairs.jsonl"), rows)
    settings = {**work, "max_steps": 3, "learning_rate": 1e-7, "watch": False}  # learns nothing: half stay wrong
    train(None, **settings, ranked_pairs="all")
    assert main(["autopsy", "run", "--drop", "never", "--output", "clean.jsonl"]) == 0
    found = examine("run")
    assert len(found.pairs) == 12
    wrong = {text_of(found.example(place)) for place in found.lists["never"]}
    kept = set(map(text_of, load_preferences("clean.jsonl")))
    whole = set(map(text_of, load_preferences("pairs.jsonl", ranked_pairs="all")))
    assert 0 < len(wrong) < 12 == len(whole)
    assert kept == whole - wrong
    assert f"{len(kept)} of 12 rows are left" in capsys.readouterr().out


def text_of(example):
    return example.prompt[-1].content, example.responses


def test_what_is_refused(work, capsys):  # noqa: F811
    train(None, **work, watch=False)
    train(None, **work, record_margins=False, watch=False)  # in the folder of a run that kept them
    assert not Path("run/margins.jsonl").exists()
    for words, said in {
        ("run",): "no margins.jsonl with margins",
        ("nowhere",): "no recipe.yaml there",
        ("run", "--drop", "odd", "--output", "x"): "found 'odd'",
        ("run", "--drop", "never"): "--drop and --output go together",
    }.items():
        assert main(["autopsy", *words]) == 2
        assert said in capsys.readouterr().err
