"""The generated pages are those that the code makes now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from preftune.objectives import objective_names
from preftune.recipe import load_recipe
from preftune.recipe.presets import find_preset

ROOT = Path(__file__).parents[1]


def load(name):
    path = ROOT / "docs" / name
    if not path.is_file():
        pytest.skip("docs/ is not part of this installation")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_flags_is_fresh():
    module = load("make_flags.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "docs/rlhf.md is old: run `make docs`"


def test_the_page_of_objectives_is_fresh():
    module = load("make_objectives.py")
    page = module.page()
    assert module.PAGE.read_text(encoding="utf-8") == page, "docs/objectives.md is old: run `make docs`"
    assert all(f"## {name}\n" in page for name in objective_names())


def text_of(name):
    path = ROOT / "docs" / name
    if not path.is_file():
        pytest.skip("docs/ is not part of this installation")
    return path.read_text(encoding="utf-8")


# What some settings have no effect, or no meaning, without.
NEEDED = {
    "optimizer_state": ["torch_dtype=bfloat16"],
    "master_weights": ["torch_dtype=bfloat16"],
    "load_in_4bit": ["use_peft=true"],
    "precompute_reference": ["objective=dpo"],
    "value_head_format": ["objective=reward"],
    "kl_coef": ["objective=ppo", "reward_model_name_or_path=r"],
    "missing_eos_penalty": ["objective=ppo", "reward_model_name_or_path=r"],
}


@pytest.mark.parametrize("name", ["hyperparameters.md", "troubleshooting.md"])
def test_settings_that_a_page_advises_are_understood(name):
    advised = re.findall(r"`(\w+): ([\w.\-]+)`", text_of(name))
    assert len(advised) > 5
    for key, value in advised:
        load_recipe(
            None, ["model_name_or_path=m", "dataset=d.jsonl", "objective=simpo", *NEEDED.get(key, ()), f"{key}={value}"]
        )


def test_the_published_settings_are_those_of_the_presets():
    numbers = r" \| ([\d.e-]+)" * 4
    rows = re.findall(rf"^\| `([\w-]+)`{numbers} \|$", text_of("hyperparameters.md"), re.MULTILINE)
    assert len(rows) == 6
    for name, beta, ratio, rate, length in rows:
        recipe = load_recipe(find_preset(name).file)
        settings = recipe.objective_args
        assert (settings["beta"], settings["gamma_beta_ratio"]) == (float(beta), float(ratio)), name
        assert (recipe.training["learning_rate"], recipe.max_length) == (float(rate), int(length)), name
