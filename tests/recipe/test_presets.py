"""Presets: short names for the published files, from a checkout and from an installed package."""

import shutil
from pathlib import Path

import pytest

from preftune.errors import RecipeError
from preftune.recipe import presets

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("mistral-base", "mistral-7b-base-simpo"),
        ("mistral-instruct", "mistral-7b-instruct-simpo"),
        ("llama3-base", "llama-3-8b-base-simpo"),
        ("llama3-instruct", "llama-3-8b-instruct-simpo"),
        ("llama3-instruct-v2", "llama-3-8b-instruct-simpo-v2"),
        ("gemma", "gemma-2-9b-it-simpo"),
        ("llama3-base-sft", "llama-3-8b-base-sft"),
        ("llama3-instruct-dpo-v2", "llama-3-8b-instruct-dpo-v2"),
        ("llama3-instruct-cpo", "llama-3-8b-instruct-cpo"),
        ("llama3-instruct-cpo-simpo", "llama-3-8b-instruct-cpo-simpo"),
        ("howto-mistral-base", "howto-mistral-7b-base"),
        ("llama-3-8b-base-rdpo", "llama-3-8b-base-rdpo"),
        ("llama-3-8b-base-rdpo.yaml", "llama-3-8b-base-rdpo"),
    ],
)
def test_a_preset_goes_by_its_short_name_and_its_files_name(name, stem):
    assert presets.find_preset(name).file.stem == stem


def test_every_published_file_is_a_preset_of_its_own_name_and_says_what_it_is():
    found = presets.load_presets()
    files = {file.name for file in (ROOT / "training_configs").glob("*.yaml")} - {"demo-simpo.yaml"}
    assert {preset.file.name for preset in found} == files
    assert len({preset.name for preset in found}) == len(found)
    assert all(len(preset.about) > 20 and preset.about[-1] in ".)" for preset in found)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'llama3-instruct-v2'"):
        presets.find_preset("llama3-instruct-v3")


def test_an_installed_package_reads_the_files_inside_it(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "preftune"
    (package / "recipe").mkdir(parents=True)
    shutil.copytree(ROOT / "training_configs", package / "training_configs")
    monkeypatch.setattr(presets, "__file__", str(package / "recipe" / "presets.py"))
    assert presets.find_preset("gemma").file == package / "training_configs" / "gemma-2-9b-it-simpo.yaml"
