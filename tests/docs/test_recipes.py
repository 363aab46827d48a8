"""Every recipe of the documentation is one, whole ones and fragments, and so is every setting named in a sentence."""

from __future__ import annotations

import re

import pytest
import yaml

from preftune.errors import RecipeError
from preftune.evaluation.arena_categories import load_categories
from preftune.objectives import objective_names
from preftune.onpolicy.plan import load_plan
from preftune.recipe import load_recipe
from preftune.recipe.load import known_keys
from tests.docs.pages import PAGES, blocks

OTHER = ("\nrun: |", "notes: ")  # a task of SkyPilot, an entry of the catalogue
BLOCKS = [
    pytest.param(block, id=str(block))
    for page in PAGES
    for block in blocks(page, "yaml")
    if not any(mark in block.text for mark in OTHER)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_recipe_of_the_documentation_loads(block, tmp_path):
    file = tmp_path / "recipe.yaml"
    values = yaml.safe_load(block.text)
    if "annotate" in values:  # rounds of on-policy training
        file.write_text(block.text, encoding="utf-8")
        assert load_plan(str(file), []).rounds
        return
    if "hard_prompt" in values:  # categories of a benchmark
        file.write_text(block.text, encoding="utf-8")
        assert list(load_categories(file)) == list(values)
        return
    whole = "objective" in values and "model_name_or_path" in values
    ppo = any(key.startswith("reward_") for key in values)
    more = {"objective": "ppo"} if ppo else {}
    base = {} if whole else {"model_name_or_path": "m", "dataset": "d.jsonl"}
    file.write_text(yaml.safe_dump({**base, **more, **values}), encoding="utf-8")
    load_recipe(file)


def test_every_key_named_in_a_sentence_is_known():
    known = known_keys() | {*objective_names(), "system"}  # a line of the log, a column
    for page in PAGES:
        for key in re.findall(r"`([a-z]\w*): [^`]+`", page.read_text(encoding="utf-8")):
            assert key in known, f"{page.name}: {key}"


def test_a_wrong_key_in_a_block_is_found(tmp_path):
    (tmp_path / "wrong.yaml").write_text("model_name_or_path: m\ndataset: d\nlearning_rat: 1\n")
    with pytest.raises(RecipeError, match="did you mean 'learning_rate'"):
        load_recipe(tmp_path / "wrong.yaml")
