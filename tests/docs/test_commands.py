"""Every command of the documentation is one: its verb, its options, its recipe keys and their values.

Commands that train are run dry. Those that only print are run. Of the others the options are read as the verb reads
them, and what would follow is left out; of these a recipe with all its keys is loaded.
"""

from __future__ import annotations

import argparse
import re
import shutil

import pytest

from preftune.cli.main import SHORT, main, run_verb
from preftune.recipe import load_recipe
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands

PRINT_ONLY = ("objectives", "presets", "schema", "--help", "--version")
EXECUTED = "extend.md"  # by test_extend.py
FOUND = [
    pytest.param(words, id=f"{block}:{' '.join(words)[:60]}")
    for page in PAGES
    if page.name != EXECUTED
    for block in blocks(page, "bash", "shell", "sh", "yaml")
    for words in commands(block.text if block.language != "yaml" or "\nrun: |" in block.text else "")
]


class ReadError(Exception):
    """The command was understood; the rest is not run."""


def named_recipes() -> dict[str, Block]:
    """The recipes that pages print under a name, `# my.yaml` being their first line."""
    found = [(re.match(r"# ([\w-]+\.yaml)\b", block.text), block) for page in PAGES for block in blocks(page, "yaml")]
    return {name[1]: block for name, block in found if name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory that the pages speak of, with the recipes that they print."""
    folder = tmp_path_factory.mktemp("docs")
    recipes = named_recipes()
    (folder / "runs" / "simpo").mkdir(parents=True)
    for name in ("my-simpo.yaml", "one.yaml", "two.yaml", "three.yaml", "runs/simpo/recipe.yaml"):
        recipes[name] = recipes["my.yaml"]
    for name, block in recipes.items():
        (folder / name).write_text(block.text, encoding="utf-8")
    for name in ("pairs.jsonl", "prompts.jsonl", "heldout.jsonl"):
        (folder / name).write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    for name in ("training_configs", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture
def understood(monkeypatch, folder):
    """Run a command as far as it is read; returns the exit code."""

    def load(*given, **values):
        load_recipe(*given, **values)
        raise ReadError

    def sweep(plan):
        for setting in plan.settings:
            load_recipe(plan.recipe, [*plan.overrides, *(f"{key}={value}" for key, value in setting.items())])
        raise ReadError

    def read(parser, *given, **values):
        options = parse(parser, *given, **values)
        if not hasattr(options, "recipe"):
            raise ReadError
        return options

    def rounds(plan):
        load_recipe(None, {"model_name_or_path": "m", "dataset": "d", **plan.train})
        raise ReadError

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.chdir(folder)
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(words):
        verb, *rest = words
        if verb == "train" and "--together" in rest:
            return max(main([verb, word, "--dry-run"]) for word in rest if word != "--together")
        if verb == "train":
            return main([*words, "--dry-run"])
        if verb == "run_simpo":
            return run_verb("run_simpo", [*rest, "--dry-run"])
        if verb in ("rlhf", *SHORT):
            return main([*words, "--dry_run", "true"])
        if verb not in PRINT_ONLY:
            monkeypatch.setattr("preftune.experiments.sweep.run_sweep", sweep)
            monkeypatch.setattr("preftune.onpolicy.rounds.run_rounds", rounds)
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
            if verb in ("check", "plan"):
                monkeypatch.setattr("preftune.recipe.load_recipe", load)
        try:
            return main(words)
        except ReadError:
            return 0

    return run


@pytest.mark.parametrize("words", FOUND)
def test_a_command_of_the_documentation_is_understood(words, understood, capsys):
    assert understood(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "trian my.yaml",
        "train my.yaml learning_rat=1",
        "chat runs/my --tempreature 1",
        "check my.yaml batch=3",
        "plan my.yaml --gpu 4",
        "sweep my.yaml --try learning_rat=1,2",
        "onpolicy onpolicy.yaml train.beto=2",
        "eval alpaca-eval judged out.json",
        "simpo --model_id_or_path m --dataset d --simpo_gama 1",
    ],
)
def test_a_wrong_command_is_found(line, understood):
    assert understood(line.split()) == 2
