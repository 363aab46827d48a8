"""What is installed is what is promised: versions, constraints, the data that ships with the package."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import preftune

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
REQUIREMENTS = [Requirement(r) for r in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_said_once_and_the_same():
    assert preftune.__version__ == PROJECT["version"]
    assert f"## {preftune.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_is_required_is_pinned_within_its_range(requirement):
    pins = {canonical(name): pin for name, pin in PINS.items()}
    pin = pins[canonical(requirement.name)]
    assert requirement.specifier.contains(pin)


def test_torch_is_pinned_first():
    assert next(iter(PINS)) == "torch"


def test_the_suite_runs_with_the_pinned_versions():
    for name in ("torch", "transformers", "accelerate", "tokenizers"):
        assert version(name).split("+")[0] == PINS[name]


def test_what_an_extra_brings_is_named_by_its_own_door():
    extras = set("zstd lora quant deepspeed liger modelscope gguf eval harness serve web dev".split())
    assert set(PROJECT["optional-dependencies"]) == extras


def test_the_published_recipes_ship_with_the_package():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {"training_configs": "preftune/training_configs"}
    assert {"/training_configs", "/accelerate_configs", "/scripts"} <= {*build["sdist"]["include"]}


def test_a_small_file_of_facts_ships_with_the_package():
    facts = list((Path(preftune.__file__).parent / "demo" / "facts").iterdir())
    assert facts
