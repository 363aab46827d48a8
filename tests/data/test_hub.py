"""Data sets by their hub names: from a stand-in for the hub, and with the server gone from the cache it filled."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest

from tests.data.hub_server import serving

README = "---\nconfigs:\n{configs}---\n"
TWO_SPLITS = README.format(
    configs="- config_name: default\n  data_files:\n  - split: train_prefs\n    path: data/train_prefs-*\n"
    "  - split: test_prefs\n    path: data/test_prefs-*\n"
)
TWO_CONFIGS = README.format(
    configs="- config_name: a\n  data_files: a/*\n- config_name: b\n  data_files: b/*\n"
)  # fmt: skip

TWO = ["train_prefs", "test_prefs"]
# name: (dataset, arguments); each is loaded online and offline
CASES = {
    "named split": ("owner/pairs", {"split": "train_prefs"}),
    "by splits": ("owner/pairs", {"splits": TWO, "split": "test"}),
    "prefix": ("HF::owner/pairs#2", {"split": "train_prefs", "mixer_order": "head"}),
    "config": ("owner/confs:b", {}),
    "train of a held-out": ("owner/confs:b", {"test_split_size": 1}),
    "test of a held-out": ("owner/confs:b", {"test_split_size": 1, "split": "test"}),
    "test that is there": ("owner/pairs", {"test_split_size": 1, "split": "test", "splits": TWO}),
    "published mixer": ({"HuggingFaceH4/ultrafeedback_binarized": 0.5}, {"mixer_order": "head"}),
    "published test": ({"HuggingFaceH4/ultrafeedback_binarized": 0.5}, {"split": "test"}),
    "files of a subset": ("hh-rlhf-cn-harmless-base-cn", {}),
    "twin": ("MS::AI-ModelScope/hh_rlhf_cn:helpful_base_cn", {"split": "test"}),
    "no such split": ("owner/pairs", {}),
    "no such config": ("owner/confs:c", {}),
    "no such set": ("owner/gone", {}),
    "files that are not there": ("hh-rlhf-cn:hh_rlhf", {}),
    "ModelScope": ("MS::owner/pairs", {}),
}  # fmt: skip
ONLINE_ONLY = {"config is needed": ("owner/confs", {})}  # offline, `datasets` takes the one that is cached

WITHOUT_MODELSCOPE = "import sys; sys.modules['modelscope'] = None"  # to import it is an ImportError
SCRIPT = """
import json, sys
from preftune.data import load_preferences
from preftune.errors import PreftuneError
said = {}
for name, (dataset, arguments) in json.load(sys.stdin).items():
    try:
        examples = load_preferences(dataset, **arguments)
        said[name] = [[example.prompt[-1].content for example in examples], str(examples[0].origin)]
    except PreftuneError as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def pairs(letter, count):
    yes, no = ([{"role": "assistant", "content": answer}] for answer in ("yes", "no"))
    return [{"prompt": f"{letter}{n}", "chosen": yes, "rejected": no} for n in range(count)]


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fill(root):
    for name in ("owner/pairs", "HuggingFaceH4/ultrafeedback_binarized"):
        for split, count in (("train_prefs", 6), ("test_prefs", 2)):
            write_parquet(root / name / f"data/{split}-00000-of-00001.parquet", pairs(split, count))
        (root / name / "README.md").write_text(TWO_SPLITS)
    for config in "ab":
        write_lines(root / f"owner/confs/{config}/train.jsonl", pairs(config, 4))
    (root / "owner/confs/README.md").write_text(TWO_CONFIGS)
    for subset in ("harmless_base_cn", "helpful_base_cn"):
        for split in ("train", "test"):
            turns = [{"role": "human", "text": f"{subset} {split}"}]
            row = {"context": turns, "chosen": {"role": "assistant", "text": "是"}}
            row["rejected"] = {"role": "assistant", "text": "不"}
            write_lines(root / f"dikw/hh_rlhf_cn/{subset}_{split}.jsonl", [row])


def load_all(cases, home, **environment):
    """What each case gave, in a process of its own: the hub's libraries read their settings when they are imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PREFTUNE_"))}
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MODELSCOPE + SCRIPT],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=kept | settings,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each case gave: {"online": ..., "offline": ...}; what is offline may find only what online has fetched."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    fill(root)
    with serving(root) as address:
        online = load_all(CASES | ONLINE_ONLY, home, HF_ENDPOINT=address)
    return {"online": online, "offline": load_all(CASES, home, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")}


TRAIN = [f"train_prefs{n}" for n in range(6)]
EXPECTED = {
    "named split": [TRAIN, "owner/pairs[train_prefs] row 1"],
    "by splits": [["test_prefs0", "test_prefs1"], "owner/pairs[test_prefs] row 1"],
    "prefix": [TRAIN[:2], "owner/pairs[train_prefs] row 1"],
    "config": [["b0", "b1", "b2", "b3"], "owner/confs:b[train] row 1"],
    "test that is there": [["test_prefs0", "test_prefs1"], "owner/pairs[test_prefs] row 1"],
    "files of a subset": [
        ["harmless_base_cn train"],
        "dikw/hh_rlhf_cn/harmless_base_cn_train.jsonl[train] row 1",
    ],
    "twin": [["helpful_base_cn test"], "dikw/hh_rlhf_cn/helpful_base_cn_test.jsonl[test] row 1"],
}


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_hub_name_gives_the_rows_of_its_split(said, way, name):
    assert said[way][name] == EXPECTED[name]


@pytest.mark.parametrize("way", ["online", "offline"])
def test_the_published_mixture_reads_the_preference_splits(said, way):
    mixed, _ = said[way]["published mixer"]
    assert sorted(mixed) == TRAIN[:3]
    assert sorted(said[way]["published test"][0]) == ["test_prefs0", "test_prefs1"]


@pytest.mark.parametrize("way", ["online", "offline"])
def test_a_test_split_is_held_out_of_a_hub_set_without_one(said, way):
    train, test = said[way]["train of a held-out"][0], said[way]["test of a held-out"][0]
    assert (len(train), len(test)) == (3, 1)
    assert sorted(train + test) == ["b0", "b1", "b2", "b3"]


REFUSED = {
    "no such split": ("DataError: owner/pairs: ", "['train_prefs', 'test_prefs']", "one of these in 'dataset_splits'"),
    "no such set": ("DataError: owner/gone: cannot be had", "the network, or download it and name the file or folder"),
    "files that are not there": ("dikw/hh_rlhf_cn: ", "hh_rlhf_train.jsonl", "local copy: dikw/hh_rlhf_cn=PATH."),
    "ModelScope": ("MissingExtraError: MS::owner/pairs needs", "the 'modelscope' extra", "preftune[modelscope]"),
    "no such config": ("DataError: owner/confs:c: cannot be had from the hub", "'c'", ""),
}  # fmt: skip


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_refused_in_one_line(said, way, name):
    for words in REFUSED[name]:
        assert words in said[way][name]
    assert "\n" not in said[way][name]


def test_a_set_of_several_subsets_names_them(said):
    message = said["online"]["config is needed"]
    assert "['a', 'b']" in message
    assert message.endswith("Name the subset: owner/confs:SUBSET.")
