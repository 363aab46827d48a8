"""Named data sets: each published one with a row as it is published, local copies of them, and entries of one's own."""

from __future__ import annotations

import json
import logging
import tomllib
from pathlib import Path

import pytest

from preftune.data import Catalog, CatalogEntry, load_catalog, load_preferences
from preftune.data.bad_rows import SkippedRows
from preftune.errors import DataError, RecipeError
from preftune.types import Layout

QUESTION, GOOD, POOR = "What is it?", "A good answer.", "A poor answer."
USER, SAID_GOOD, SAID_POOR = (
    {"role": role, "content": text} for role, text in (("user", QUESTION), ("assistant", GOOD), ("assistant", POOR))
)
CONVERSATIONS = {"chosen": [USER, SAID_GOOD], "rejected": [USER, SAID_POOR]}
ON_POLICY = {
    "prompt_id": "1",
    "prompt": QUESTION,
    "all_generated_responses": [POOR, GOOD],
    "all_rm_scores": [0.1, 0.2],
    **CONVERSATIONS,
}
BINARIZED = {
    "prompt": QUESTION,
    "prompt_id": "1",
    **CONVERSATIONS,
    "messages": CONVERSATIONS["chosen"],
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}

# name in a command or recipe: a row with the columns that the set has
PUBLISHED = {
    "HuggingFaceH4/ultrafeedback_binarized": BINARIZED,
    "princeton-nlp/mistral-instruct-ultrafeedback": ON_POLICY,
    "princeton-nlp/llama3-ultrafeedback": ON_POLICY,
    "princeton-nlp/llama3-ultrafeedback-armorm": ON_POLICY,
    "princeton-nlp/gemma2-ultrafeedback-armorm": ON_POLICY,
    "argilla/ultrafeedback-binarized-preferences-cleaned": {
        "source": "x", "prompt": QUESTION, **CONVERSATIONS, "chosen-rating": 5.0, "chosen-model": "m",
        "rejected-rating": 3.5, "rejected-model": "n",
    },
    "argilla/distilabel-math-preference-dpo": {
        "metadata": "{}", "instruction": QUESTION, "chosen_response": GOOD, "chosen_rating": 9.0,
        "rejected_response": POOR, "rejected_rating": 5.0,
    },
    "HuggingFaceH4/ultrachat_200k": {"prompt": QUESTION, "prompt_id": "1", "messages": CONVERSATIONS["chosen"]},
    "shareai-llama3-dpo-zh-en-emoji": {"question": QUESTION, "answer_zh": GOOD, "answer_en": POOR},
    "hh-rlhf": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {POOR}",
    },
    "hh-rlhf-cn-harmless-base-cn": {
        "context": [{"role": "human", "text": QUESTION}],
        "chosen": {"role": "assistant", "text": GOOD},
        "rejected": {"role": "assistant", "text": POOR},
    },
    "ultrafeedback-kto": {"prompt": QUESTION, "completion": GOOD, "label": True, "rating": 5},
    "mlabonne/orpo-dpo-mix-40k": {"source": "x", "prompt": QUESTION, "question": QUESTION, **CONVERSATIONS},
    "Intel/orca_dpo_pairs": {"system": "", "question": QUESTION, "chosen": GOOD, "rejected": POOR},
    "zhihu-rlhf": {"prompt": QUESTION, "chosen": GOOD, "rejected": POOR},
    "stack-exchange-paired": {
        "qid": 1, "question": QUESTION, "date": "d", "metadata": [], "response_j": GOOD, "response_k": POOR,
    },
    "auto-j": {"scenario": "x", "label": 0, "prompt": QUESTION, "response 1": GOOD, "response 2": POOR},
    "pandalm": {
        "instruction": QUESTION, "input": "", "response1": POOR, "response2": GOOD, "annotator1": 2, "annotator2": 0,
        "annotator3": 2,
    },
    "princeton-nlp/LLMBar": {"input": QUESTION, "output_1": POOR, "output_2": GOOD, "label": 2},
    "alpaca_eval": {
        "instruction": QUESTION, "output_1": POOR, "generator_1": "m", "output_2": GOOD, "preference": 1.9,
    },
    "oasst-zh": {"instruction": QUESTION, "input": "", "output": [GOOD, POOR], "history": []},
    "qwen3_emoji_dpo": {"prompt": [USER], "chosen": [SAID_GOOD], "rejected": [SAID_POOR]},
}  # fmt: skip


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_catalog(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_is_read_with_its_meaning_from_a_local_copy(tmp_path, name):
    path = write_rows(tmp_path / "copy.jsonl", PUBLISHED[name])
    entry, _ = load_catalog().find(name)
    (example,) = load_preferences(f"{name}={path}", layout=entry.layout)
    assert [message.content for message in example.prompt] == [QUESTION]
    assert example.responses == ((GOOD, POOR) if entry.layout in (Layout.PAIRED, Layout.RANKED) else (GOOD,))
    assert example.scores == {"ultrafeedback-kto": (1.0,)}.get(name, example.scores)


def test_every_published_set_is_tested():
    catalog = load_catalog()
    assert {catalog.find(name)[0].name for name in PUBLISHED} == set(catalog.entries)


@pytest.mark.parametrize(
    ("alias", "name", "subset"),
    [
        ("hh-rlhf-cn-harmless-base-cn", "hh-rlhf-cn", "harmless_base_cn"),
        ("hh-rlhf-helpful-rejection-sampled", "hh-rlhf", "helpful-rejection-sampled"),
        ("Anthropic/hh-rlhf", "hh-rlhf", None),
        ("AI-ModelScope/hh_rlhf_cn", "hh-rlhf-cn", None),
        ("hjh0119/shareAI-Llama3-DPO-zh-en-emoji", "shareai-llama3-dpo-zh-en-emoji", None),
        ("SHAREAI-LLAMA3-DPO-ZH-EN-EMOJI", "shareai-llama3-dpo-zh-en-emoji", None),
        ("argilla/ultrafeedback-binarized-preferences-cleaned-kto", "ultrafeedback-kto", None),
    ],
)
def test_a_set_is_found_by_any_of_its_names(alias, name, subset):
    entry, implied = load_catalog().find(alias)
    assert (entry.name, implied) == (name, subset)


def test_no_name_means_two_published_sets():
    names = [name.lower() for entry in load_catalog().entries.values() for name in entry.names]
    assert len(names) == len(set(names))


# --- local copies


def test_a_copy_with_other_columns_is_recognised_by_what_it_has(tmp_path):
    path = write_rows(tmp_path / "copy.jsonl", {"prompt": QUESTION, "chosen": GOOD, "rejected": POOR})
    (example,) = load_preferences(f"shareai-llama3-dpo-zh-en-emoji={path}")
    assert example.responses == (GOOD, POOR)


def test_ones_own_columns_go_before_those_of_the_catalogue(tmp_path):
    path = write_rows(tmp_path / "copy.jsonl", {"question": QUESTION, "answer_zh": POOR, "answer_en": GOOD})
    swapped = {"answer_en": "chosen", "answer_zh": "rejected"}
    (example,) = load_preferences(f"shareai-llama3-dpo-zh-en-emoji={path}", columns=swapped)
    assert example.responses == (GOOD, POOR)


@pytest.mark.parametrize(
    "file",
    [
        "hh-rlhf/{}/train.jsonl",
        "hh-rlhf/{}.train.jsonl",
        "Anthropic/hh-rlhf/{}/train.jsonl",
        "hh-rlhf/{}.jsonl",
    ],
)
def test_a_subset_below_the_data_root_is_found_by_any_of_its_names(tmp_path, monkeypatch, file):
    row = PUBLISHED["hh-rlhf"]
    write_rows(tmp_path / file.format("harmless-base"), row)
    write_rows(tmp_path / file.format("helpful-base"), row, row)
    monkeypatch.setenv("PREFTUNE_DATA_ROOT", str(tmp_path))
    for name in ("hh-rlhf:harmless-base", "hh-rlhf-harmless-base", "MS::AI-ModelScope/hh-rlhf:harmless-base"):
        (example,) = load_preferences(name)
        assert example.responses == (GOOD, POOR)
    assert len(load_preferences("hh-rlhf")) == 3


def test_a_set_may_have_a_subset_that_it_is_read_by(tmp_path):
    row = PUBLISHED["stack-exchange-paired"]
    for folder, count in (("rl", 2), ("finetune", 3)):
        write_rows(tmp_path / "data" / folder / "train.jsonl", *[row] * count)
    assert len(load_preferences(f"stack-exchange-paired={tmp_path}")) == 2
    assert len(load_preferences(f"stack-exchange-paired:finetune={tmp_path}")) == 3
    write_rows(tmp_path / "whole/train.jsonl", *[row] * 4)
    assert len(load_preferences(f"stack-exchange-paired={tmp_path / 'whole'}")) == 4
    with pytest.raises(DataError, match=r"nothing in it is called 'finetune' \(found: train\.jsonl\)"):
        load_preferences(f"stack-exchange-paired:finetune={tmp_path / 'whole'}")


def test_a_file_below_the_data_root_is_a_copy_too(tmp_path, monkeypatch):
    write_rows(tmp_path / "llama3-ultrafeedback.jsonl", ON_POLICY)
    write_rows(tmp_path / "llama3-ultrafeedback-armorm.jsonl", ON_POLICY, ON_POLICY)
    monkeypatch.setenv("PREFTUNE_DATA_ROOT", str(tmp_path))
    assert len(load_preferences("princeton-nlp/llama3-ultrafeedback")) == 1
    assert len(load_preferences("llama3-ultrafeedback-armorm")) == 2


def test_a_copy_is_read_by_the_hubs_splits_or_by_plain_ones(tmp_path):
    hub, plain = tmp_path / "hub", tmp_path / "plain"
    for file, count in (("train_prefs-00000-of-00001", 3), ("test_prefs-00000-of-00001", 2), ("train_sft", 9)):
        write_rows(hub / f"{file}.jsonl", *[BINARIZED] * count)
    for file, count in (("train", 5), ("eval", 4)):
        write_rows(plain / f"{file}.jsonl", *[BINARIZED] * count)
    name = "HuggingFaceH4/ultrafeedback_binarized"
    assert len(load_preferences(f"{name}={hub}")) == 3
    assert len(load_preferences(f"{name}={hub}", split="test")) == 2
    assert len(load_preferences(f"{name}={plain}")) == 5
    assert len(load_preferences(f"{name}={plain}", split="test")) == 4


def test_rows_that_the_published_commands_leave_out_are_left_out(tmp_path, caplog):
    row = PUBLISHED["mlabonne/orpo-dpo-mix-40k"]
    path = write_rows(tmp_path / "mix.jsonl", row, {**row, "source": "toxic-dpo-v0.2"}, row)
    with caplog.at_level(logging.INFO, logger="preftune"):
        assert len(load_preferences(f"orpo-dpo-mix-40k={path}")) == 2
    assert "1 rows left out, as the catalogue has it" in caplog.text
    path = write_rows(tmp_path / "mix.jsonl", {**row, "source": "toxic-dpo-v0.2"})
    with pytest.raises(DataError, match="gives no rows for 'train'"):
        load_preferences({f"orpo-dpo-mix-40k={path}": 0.5})


def test_a_set_known_for_bad_rows_skips_them_unless_told_otherwise(tmp_path):
    row = PUBLISHED["hh-rlhf"]
    path = write_rows(tmp_path / "hh.jsonl", row, {**row, "rejected": row["chosen"]})
    skipped = SkippedRows()
    assert len(load_preferences(f"hh-rlhf={path}", skipped=skipped)) == 1
    assert (skipped.read, skipped.total) == (2, 1)
    with pytest.raises(DataError, match="row 2"):
        load_preferences(f"hh-rlhf={path}", on_bad_row="error")
    with pytest.raises(DataError, match="row 2"):
        load_preferences(path)


def test_what_is_not_known_is_refused_with_the_nearest_name(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no such name in the catalogue; nearest: 'hh-rlhf-cn'.*owner/name"):
        load_preferences("hh-rlh-cn")
    with pytest.raises(RecipeError, match="no data set of the catalogue is called 'hh-rlh'; nearest: 'hh-rlhf'"):
        load_preferences(f"hh-rlh={tmp_path}")
    with pytest.raises(RecipeError, match=r"'hh-rlhf' has no subset 'harmless'\. The catalogue knows: harmless-base, "):
        load_preferences("hh-rlhf:harmless")
    monkeypatch.setenv("PREFTUNE_DATA_ROOT", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="gone: there is no such folder, and PREFTUNE_DATA_ROOT names it"):
        load_preferences("hh-rlhf")


# --- entries of one's own

OWN = """
my-pairs:
  hub: owner/my-pairs
  aliases: [pairs]
  columns: {ask: prompt, plus: chosen, minus: rejected}
  on_bad_row: skip
"""


def test_one_entry_makes_a_set_of_ones_own(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "x.jsonl", {"ask": QUESTION, "plus": GOOD, "minus": POOR}, {"ask": ""})
    file = write_catalog(tmp_path / "own.yaml", OWN)
    (example,) = load_preferences(f"pairs={path}", catalog=file)
    assert example.responses == (GOOD, POOR)
    monkeypatch.setenv("PREFTUNE_CATALOG", str(file))
    assert load_preferences(f"owner/my-pairs={path}") == [example]
    assert load_catalog().find("hh-rlhf") is not None


def test_an_entry_of_ones_own_replaces_the_published_one(tmp_path):
    file = write_catalog(tmp_path / "own.yaml", "hh-rlhf: {hub: owner/mine}")
    assert load_catalog(file).find("hh-rlhf")[0].hub == "owner/mine"


WRONG = {
    "no YAML": ("a: [", "not sound YAML"),
    "no map": ("- a", "expected a map of names to entries, found a list"),
    "no entry": ("x: 3", r"entry 'x' is a number \(3\)"),
    "a key that is not known": ("x: {colums: {}}", "'colums', which is not known; nearest: 'columns'"),
    "a value of another kind": ("x: {aliases: a}", r"'aliases' is text \(\"a\"\); expected a list"),
    "another layout": ("x: {layout: pair}", "'layout' is 'pair'; expected one of single, paired"),
    "another way with bad rows": ("x: {on_bad_row: drop}", "'on_bad_row' is 'drop'; expected one of error, skip"),
    "no train split": ("x: {splits: {test: a}}", "'splits' is {'test': 'a'}; expected names"),
    "a default that is no subset": ("x: {default_subset: a}", "'default_subset' is not one of 'subsets'"),
    "a list where a column's name belongs": ("x: {columns: {a: [b]}}", "'columns' maps 'a' to"),
    "a pattern with another field": ("x: {files: '{name}.jsonl'}", "'files' may hold {subset} and {split}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_catalogue_is_refused_in_one_line(tmp_path, name):
    text, problem = WRONG[name]
    with pytest.raises(RecipeError, match=problem) as caught:
        load_catalog(write_catalog(tmp_path / "own.yaml", text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "own.yaml"))


def test_a_catalogue_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="the catalogue cannot be read"):
        load_catalog(tmp_path / "gone.yaml")


def test_a_set_without_a_hub_needs_a_copy(tmp_path):
    file = write_catalog(tmp_path / "own.yaml", "mine: {columns: {a: prompt}}")
    with pytest.raises(DataError, match=r"mine: its entry names no hub\. Download it"):
        load_preferences("mine", catalog=file)


def test_the_catalogue_is_also_made_in_code():
    entry = CatalogEntry("mine", subsets=("a_b",))
    assert Catalog({"mine": entry}).find("mine-a-b") == (entry, "a_b")


def test_the_catalogue_ships_with_the_package():
    import preftune.data

    assert Path(preftune.data.__file__).with_name("catalog.yaml").is_file()
    build = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["preftune"]  # whole, with what is not code


# --- real rows

# name: (what stands in for it, rows, bad rows among them)
REAL = {
    "hh-rlhf:harmless-base": ("hh-rlhf", 1515, 5),
    "hh-rlhf:helpful-base/helpful-online": ("hh-rlhf", 1576 + 760, 16),
    "hh-rlhf": ("hh-rlhf", 1515 + 1576 + 760 + 1848, 44),
    "shareai-llama3-dpo-zh-en-emoji": ("emoji", 429 + 444 + 299 + 301, 167),  # of equal answers
    "argilla/ultrafeedback-binarized-preferences-cleaned": ("ultrafeedback", 642 + 119, 6),
    "ultrafeedback-kto": ("llamafactory/kto_en_demo.train.jsonl", 195, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_rows_are_read_under_a_published_name(data_folder, name):
    folder, count, bad = REAL[name]
    skipped = SkippedRows()
    layout = load_catalog().find(name.split(":")[0])[0].layout
    source = f"{name}={data_folder / 'preferences' / folder}"
    examples = load_preferences(source, layout=layout, on_bad_row="skip", skipped=skipped)
    assert skipped.read == count
    assert skipped.total == bad
    assert len(examples) == count - bad
    assert len({example.origin for example in examples}) == len(examples)


def test_real_rows_are_found_below_the_data_root(data_folder, monkeypatch):
    monkeypatch.setenv("PREFTUNE_DATA_ROOT", str(data_folder / "preferences"))
    read = {name: len(load_preferences(name)) for name in ("autoj", "pandalm", "llmbar", "alpaca_eval", "oasst-zh")}
    assert read == {"autoj": 674, "pandalm": 508, "llmbar": 269, "alpaca_eval": 1538, "oasst-zh": 515}
    assert len(load_preferences("hh-rlhf-harmless-base")) == 1510
    assert len(load_preferences("hh-rlhf-harmless-base", split="test")) > 225  # of 232: the copy's split is called eval
