"""The schema takes every recipe that ships, and refuses what `load_recipe` refuses by key or type."""

import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from preftune.cli.main import main
from preftune.recipe.json_schema import recipe_schema

RECIPES = sorted((Path(__file__).parents[2] / "training_configs").glob("*.yaml"))
SCHEMA = jsonschema_rs.Draft202012Validator(recipe_schema())


def test_it_is_a_schema_and_is_what_the_command_prints(capsys):
    assert jsonschema_rs.meta.is_valid(recipe_schema())
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_ship_fit(path):
    SCHEMA.validate(yaml.safe_load(path.read_text()))


def test_names_of_other_tools_fit():
    SCHEMA.validate({"model_name_or_path": "m", "dataset": "d", "simpo_gamma": 1.0, "evaluation_strategy": "steps"})


@pytest.mark.parametrize(
    "settings",
    [{"betta": 2}, {"beta": "two"}, {"objective": "simp"}, {"max_length": 1.5}, {"on_collapse": "halt"}],
)
def test_what_is_no_recipe_does_not_fit(settings):
    assert not SCHEMA.is_valid(settings)


def test_keys_are_described():
    keys = recipe_schema()["properties"]
    assert keys["lora_alpha"]["description"].startswith("rank, scale (over rank)")
    assert "PPO" not in keys["beta"].get("description", "")
