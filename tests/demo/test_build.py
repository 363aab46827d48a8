from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from preftune.demo.build import FOLDER, SWAPPED_COLUMNS, sft_recipe, simpo_recipe, write_data
from preftune.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def test_the_shipped_recipe_is_the_demo_step():
    shipped = load_recipe(ROOT / "training_configs" / "demo-simpo.yaml", {"output_dir": "x"})
    assert shipped == replace(simpo_recipe(Path(FOLDER), Path("x"), seed=0), origin=shipped.origin)


def test_the_control_run_differs_in_its_columns_alone():
    straight, swapped = (simpo_recipe(Path("a"), Path("b"), seed=1, swap=swap).to_dict() for swap in (False, True))
    assert {key for key in straight if straight[key] != swapped[key]} == {"columns"}
    assert swapped["columns"] == SWAPPED_COLUMNS


def test_data_are_written_for_the_recipes(tmp_path):
    write_data(tmp_path / "data", seed=0)
    for recipe in (sft_recipe(tmp_path, 0), simpo_recipe(tmp_path, tmp_path, 0)):
        rows = [json.loads(line) for line in Path(recipe.dataset).read_text(encoding="utf-8").splitlines()]
        assert set(rows[0]) == set(recipe.columns)
