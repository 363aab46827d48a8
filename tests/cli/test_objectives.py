"""`preftune objectives` says of each what the code does."""

import json

import pytest

from preftune.cli.main import main
from preftune.objectives import load_objective, objective_defaults, objective_names


def test_it_lists_all_with_formula_and_source(capsys):
    assert main(["objectives"]) == 0
    out = capsys.readouterr().out
    for name in objective_names():
        assert f"{name}  (" in out
        assert load_objective(name).source in out


def test_json_holds_the_defaults_and_the_needs(capsys):
    assert main(["objectives", "--json"]) == 0
    facts = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(facts) == set(objective_names())
    assert facts["simpo"]["defaults"] == objective_defaults("simpo")
    assert facts["cpo"]["defaults"]["sft_weight"] == 1.0
    assert facts["slic_hf"]["defaults"]["sft_normalization"] == "sum"
    assert {name for name, one in facts.items() if one["needs_reference"]} == {
        name for name in objective_names() if load_objective(name).needs_reference
    }
    assert facts["simpo"]["cost"] == "nothing more"
    assert "a pass over mismatched responses" in facts["kto"]["cost"]
    assert "a first pass over the step" in facts["aot"]["cost"]


def test_one_is_described(capsys):
    assert main(["objectives", "rdpo"]) == 0
    out = capsys.readouterr().out
    assert "alpha 0.05" in out
    assert "arXiv:2403.19159" in out


@pytest.mark.parametrize("name", ["simp0", "smpo"])
def test_an_unknown_one_names_the_nearest(name, capsys):
    assert main(["objectives", name]) == 2
    assert "did you mean 'simpo'?" in capsys.readouterr().err
