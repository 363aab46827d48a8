"""Which answer is chosen in the published files, against bare loops over the raw rows that use none of our code.

The meaning of the labels is that of the sets' own pages: LLMBar 1 or 2, PandaLM three people with 0 for a tie, Auto-J
0 or 1 with 2 for a tie, AlpacaEval 1 to 2 where above 1.5 the second wins, hh-rlhf the last turn of each dialogue.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from preftune.data import load_preferences, load_rows, to_examples
from preftune.errors import DataError

SPLITS = ("train", "eval")


def raw(path: Path) -> list[dict]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def common_start(one: str, other: str) -> str:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


def read(path: Path, columns=None, layout="paired"):
    """(row, last prompt turn, chosen, rejected) of the good rows."""
    examples = to_examples(load_rows(path), layout, columns, on_bad_row="skip")
    return [(e.origin.row, e.prompt[-1].content, *e.responses) for e in examples]


def expected(path: Path, prompt, first: str, second: str, winner):
    """The same from the raw rows: `winner` gives 0 for the first, 1 for the second, None for a tie."""
    pairs = []
    for number, row in enumerate(raw(path), 1):
        answers, better = (row[first], row[second]), winner(row)
        if better is None or not all(answer.strip() for answer in answers) or answers[0] == answers[1]:
            continue
        pairs.append((number, prompt(row), answers[better], answers[1 - better]))
    return pairs


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["Natural", "GPTInst", "GPTOut", "Manual", "Neighbor"])
def test_llmbar_prefers_the_output_that_its_label_names(data_folder, name, split):
    path = data_folder / f"preferences/llmbar/{name}.{split}.jsonl"
    pairs = expected(path, lambda row: row["input"], "output_1", "output_2", lambda row: row["label"] - 1)
    assert read(path) == pairs
    assert len(pairs) == len(raw(path))


@pytest.mark.parametrize("split", SPLITS)
def test_pandalm_prefers_what_two_of_three_annotators_prefer(data_folder, split):
    path = data_folder / f"preferences/pandalm/testset.{split}.jsonl"

    def winner(row):
        votes = sorted(row[f"annotator{n}"] for n in (1, 2, 3))
        return None if votes[1] == 0 or len(set(votes)) == 3 else votes[1] - 1

    def prompt(row):
        return f"{row['instruction']}\n{row['input']}" if row["input"].strip() else row["instruction"]

    assert read(path) == expected(path, prompt, "response1", "response2", winner)


@pytest.mark.parametrize("split", SPLITS)
def test_autoj_counts_from_zero_and_two_is_a_tie(data_folder, split):
    path = data_folder / f"preferences/autoj/pairwise.{split}.jsonl.gz"
    pairs = expected(
        path, lambda row: row["prompt"], "response 1", "response 2", lambda row: {0: 0, 1: 1, 2: None}[row["label"]]
    )
    assert read(path, {"label": "winner_index"}) == pairs


def test_autoj_is_not_guessed(data_folder):
    with pytest.raises(DataError, match=r"row 1: the numbers in 'label' do not say.*\{label: winner_index\} where 0"):
        load_preferences(data_folder / "preferences/autoj/pairwise.eval.jsonl.gz")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("model", ["gpt-3.5-turbo-0301", "alpaca-farm-ppo-sim-gpt4-20k", "vicuna-7b-v1.5"])
def test_alpaca_eval_prefers_the_output_that_the_judge_leans_to(data_folder, model, split):
    path = data_folder / f"preferences/alpaca_eval/{model}.{split}.jsonl.gz"

    def winner(row):
        return None if row["preference"] == 1.5 else int(row["preference"] > 1.5)

    assert read(path) == expected(path, lambda row: row["instruction"], "output_1", "output_2", winner)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("subset", ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"])
def test_hh_rlhf_is_split_at_the_last_assistant_turn(data_folder, subset, split):
    path = data_folder / f"preferences/hh-rlhf/{subset}.{split}.jsonl.gz"
    pairs = []
    for number, row in enumerate(raw(path), 1):
        common = common_start(row["chosen"], row["rejected"])
        cut = common.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        chosen, rejected = row["chosen"][cut:], row["rejected"][cut:]
        ends = [turn in answer for turn in ("\n\nHuman:", "\n\nAssistant:") for answer in (chosen, rejected)]
        if any(ends) or not chosen.strip() or not rejected.strip() or chosen.strip() == rejected.strip():
            continue
        question = common[:cut].rsplit("\n\nHuman:", 1)[1].removesuffix("\n\nAssistant:").strip()
        pairs.append((number, question, chosen.strip(), rejected.strip()))
    assert read(path) == pairs
    assert len(pairs) > 0.98 * len(raw(path)) - 1


def test_the_chosen_side_of_every_form_of_a_pair_is_what_single_imitates(data_folder):
    files = [
        ("hh-rlhf/helpful-base.eval.jsonl.gz", None),
        ("llmbar/Natural.train.jsonl", None),
        ("autoj/pairwise.eval.jsonl.gz", {"label": "winner_index"}),
        ("llamafactory/v1_dpo_demo.train.jsonl", None),
        ("llamafactory/dpo_zh_demo.eval.jsonl", None),
        ("tulu/preference_sample.eval.jsonl", None),
    ]
    for file, columns in files:
        rows = load_rows(data_folder / "preferences" / file)
        pairs = to_examples(rows, "paired", columns, on_bad_row="skip")
        single = to_examples(rows, "single", columns, on_bad_row="skip")
        assert [(e.prompt, e.responses) for e in single] == [(e.prompt, e.responses[:1]) for e in pairs], file
