"""Data sets of ModelScope: from a stand-in for it, and with the server gone from the cache it filled.

Where the package modelscope is installed it is what fetches; elsewhere a stand-in of the same signature.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.data.hub_server import serving
from tests.data.modelscope_server import ModelScope
from tests.data.test_hub import SCRIPT, pairs, write_lines, write_parquet

STAND_IN = Path(__file__).with_name("stand_in")
NOWHERE = "http://127.0.0.1:9"  # nobody listens there

# name: (dataset, arguments)
CASES = {
    "train": ("MS::owner/pairs", {}),
    "test": ("MS::owner/pairs", {"split": "test"}),
    "count": ("MS::owner/pairs#2", {"mixer_order": "head"}),
    "subset": ("MS::owner/confs:b", {}),
    "mixed": ({"MS::owner/confs:a": 0.5, "MS::owner/parquet": 1.0}, {"mixer_order": "head"}),
    "published splits": ("MS::HuggingFaceH4/ultrafeedback_binarized", {"split": "test"}),
    "of the catalogue": ("MS::AI-ModelScope/hh_rlhf_cn:helpful_base_cn", {}),
}
REFUSED = {
    "no such set": ("MS::owner/gone", {}),
    "no such set of the catalogue": ("MS::AI-ModelScope/orca_dpo_pairs", {}),
    "no such subset": ("MS::owner/confs:c", {}),
    "no such split": ("MS::owner/confs", {"split": "test"}),
    "a file that does not arrive": ("MS::owner/torn", {}),
    "no owner": ("MS::pairs", {}),
}


def fill(root):
    write_lines(root / "owner/pairs/train.jsonl", pairs("train", 6))
    write_lines(root / "owner/pairs/test.jsonl.gz", pairs("test", 2))
    for name in ("dataset_infos.json", "configuration.json"):
        (root / "owner/pairs" / name).write_text('{"default": {}}')
    (root / "owner/pairs/README.md").write_text("---\nlicense: mit\n---\n")
    for config in "ab":
        write_lines(root / f"owner/confs/{config}/train.jsonl", pairs(config, 4))
    write_parquet(root / "owner/parquet/data/train-00000-of-00001.parquet", pairs("p", 2))
    write_lines(root / "owner/torn/train.jsonl", pairs("kept", 2))
    write_lines(root / "owner/torn/lost.jsonl", pairs("lost", 2))
    for split, count in (("train_prefs", 6), ("test_prefs", 2)):
        file = f"HuggingFaceH4/ultrafeedback_binarized/data/{split}-00000-of-00001.parquet"
        write_parquet(root / file, pairs(split, count))
    turns = [{"role": "human", "text": "helpful"}]
    row = {
        "context": turns,
        "chosen": {"role": "assistant", "text": "是"},
        "rejected": {"role": "assistant", "text": "不"},
    }
    write_lines(root / "AI-ModelScope/hh_rlhf_cn/helpful_base_cn_train.jsonl", [row])
    write_lines(root / "AI-ModelScope/hh_rlhf_cn/helpful_base_en_train.jsonl", [row, row])


def ask(cases, home, address):
    """What each case gave, and what was logged; in a process of its own, without the hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PREFTUNE_", "MODELSCOPE_"))}
    found = [] if find_spec("modelscope") else [str(STAND_IN)]
    settings = {
        "HOME": str(home),
        "MODELSCOPE_CACHE": str(home / "cache"),
        "MODELSCOPE_ENDPOINT": address,
        "HF_ENDPOINT": NOWHERE,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(cases), capture_output=True, text=True, env=kept | settings
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each case gave: {"online": ..., "offline": ...}; what is offline may find only what online has fetched."""
    root, home = tmp_path_factory.mktemp("modelscope"), tmp_path_factory.mktemp("home")
    fill(root)
    with serving(root, ModelScope) as address:
        online, _ = ask(CASES | REFUSED, home, address)
    offline, logged = ask(CASES, home, NOWHERE)
    return {"online": online, "offline": offline, "logged": logged}


TRAIN = [f"train{n}" for n in range(6)]
EXPECTED = {
    "train": (TRAIN, "/train.jsonl[train] row 1"),
    "test": (["test0", "test1"], "/test.jsonl.gz[test] row 1"),
    "count": (TRAIN[:2], "/train.jsonl[train] row 1"),
    "subset": (["b0", "b1", "b2", "b3"], "/b/train.jsonl[train] row 1"),
    "published splits": (["test_prefs0", "test_prefs1"], "[test_prefs] row 1"),
    "of the catalogue": (["helpful"], "/helpful_base_cn_train.jsonl[train] row 1"),
}


@pytest.mark.parametrize("way", ["online", "offline"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_with_the_prefix_gives_the_rows_of_the_folder(said, way, name):
    prompts, origin = EXPECTED[name]
    assert said[way][name][0] == prompts
    assert said[way][name][1].endswith(origin)


@pytest.mark.parametrize("way", ["online", "offline"])
def test_sets_of_modelscope_can_be_mixed(said, way):
    assert sorted(said[way]["mixed"][0]) == ["a0", "a1", "p0", "p1"]


def test_offline_a_warning_says_what_is_read(said):
    lines = [
        line for line in said["logged"].splitlines() if line.startswith("owner/pairs: ModelScope cannot be reached")
    ]
    assert len(lines) == 1  # it is asked for once, not for each split
    assert "the 5 files fetched before are read, from /" in lines[0]


WORDS = {
    "no such set": (
        "DataError: owner/gone: cannot be had from ModelScope",
        "no data set of that name",
        "name the folder",
    ),
    "no such set of the catalogue": ("name a local copy: AI-ModelScope/orca_dpo_pairs=PATH.",),
    "no such subset": ("DataError: ", "nothing in it is called 'c' (found: a, b)"),
    "no such split": ("DataError: ", "there is no split 'test'. Its files give: train"),
    "a file that does not arrive": ("DataError: owner/torn: cannot be had from ModelScope", "1 of 2", "lost.jsonl"),
    "no owner": ("DataError: MS::pairs: ", "is written MS::owner/name"),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_not_there_is_refused_in_one_line(said, name):
    for words in WORDS[name]:
        assert words in said["online"][name]
    assert "\n" not in said["online"][name]


def test_without_network_and_cache_one_line_says_why(tmp_path):
    told, _ = ask({"train": CASES["train"]}, tmp_path, NOWHERE)
    assert told["train"].startswith("DataError: owner/pairs: cannot be had from ModelScope (")
    assert "onnection" in told["train"]
    assert told["train"].endswith("Check the name and the network, or download it and name the folder instead.")
    assert "\n" not in told["train"]
