"""Other tools' names, the absolute gamma, warm-up as a ratio."""

import logging

import pytest

from preftune.errors import RecipeError
from preftune.objectives import objective_defaults
from preftune.recipe import load_recipe
from preftune.recipe.compat import ALIASES, GAMMAS, IGNORED, REFUSED, RENAMED_BY_TRANSFORMERS
from preftune.recipe.schema import SCHEMA_KEYS
from preftune.recipe.training import training_kinds

MINIMAL = {"model_name_or_path": "m", "dataset": "d"}


def recipe(**values):
    return load_recipe(None, {**MINIMAL, **values})


def test_every_alias_leads_to_a_key_and_is_none_itself():
    keys = {*SCHEMA_KEYS, *training_kinds()}
    assert set(ALIASES.values()) <= keys | set(objective_defaults("ppo"))
    assert not set(ALIASES) & keys
    assert not set(IGNORED) & keys
    assert not {*GAMMAS, "warmup_ratio"} & keys


def test_every_renamed_key_is_known_under_one_name():
    for old, new in RENAMED_BY_TRANSFORMERS.items():
        assert {old, new} & set(training_kinds())


@pytest.mark.parametrize("alias", ["cpo_alpha", "rpo_alpha", "pref_ftx"])
def test_the_sft_weight_has_aliases(alias):
    assert recipe(**{alias: 0.1}).sft_weight == 0.1


def test_an_objective_has_names_of_its_own_for_its_keys():
    assert recipe(objective="ipo", beta=0.2).objective_args["tau"] == 0.2
    assert recipe(objective="orpo", **{"lambda": 0.5}).objective_args["beta"] == 0.5
    with pytest.raises(RecipeError, match=r"'tau' 0\.1 and 'beta' 0\.2 disagree"):
        recipe(objective="ipo", beta=0.2, tau=0.1)


def test_other_tools_names_for_truncation():
    assert recipe(truncation_strategy="delete").truncation == "drop"
    assert recipe(truncation_mode="keep_end").truncation == "keep_end"
    with pytest.raises(RecipeError, match="'truncation_strategy' must be one of delete"):
        recipe(truncation_strategy="split")


def test_a_mixer_is_a_dataset_with_weights():
    found = load_recipe(None, {"model_name_or_path": "m", "dataset_mixer": {"a": 0.5, "b": 1.0}})
    assert found.dataset == {"a": 0.5, "b": 1.0}


def test_an_override_under_an_alias_wins_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("model_name_or_path: m\ndataset: d\nobjective: ipo\ntau: 0.1\n")
    assert load_recipe(tmp_path / "a.yaml", ["beta=0.2"]).objective_args["tau"] == 0.2


def test_a_mixture_knows_the_names_of_its_objectives():
    found = recipe(objective="mixture", mixture={"ipo": {"weight": 1.0, "beta": 0.2}, "dpo": 1.0})
    assert found.objective_args["mixture"]["ipo"] == {"weight": 1.0, "tau": 0.2}


@pytest.mark.parametrize(("name", "ours"), [("rm", "reward"), ("SimPO", "simpo"), ("slic-hf", "slic_hf")])
def test_other_spellings_of_an_objective(name, ours):
    assert recipe(loss=name).objective == ours


def test_a_reference_has_aliases():
    found = recipe(objective="dpo", ref_model="r", precompute_ref_log_probs=True)
    assert (found.reference_model_name_or_path, found.precompute_reference) == ("r", True)


def test_an_alias_that_is_null_says_nothing():
    assert recipe(rpo_alpha=None, cpo_alpha=0.5).sft_weight == 0.5


@pytest.mark.parametrize("alias", ["loss", "rlhf_type"])
def test_the_objective_has_aliases(alias):
    assert recipe(**{alias: "sft"}).objective == "sft"


@pytest.mark.parametrize(("given", "name"), [("bf16", "bfloat16"), ("torch.float16", "float16"), ("auto", "auto")])
def test_dtype_is_torch_dtype(given, name):
    assert recipe(dtype=given).torch_dtype == name


@pytest.mark.parametrize("gamma", GAMMAS)
def test_absolute_gamma_is_divided_by_beta_with_a_line_in_the_log(gamma, caplog):
    with caplog.at_level(logging.INFO, logger="preftune"):
        assert recipe(**{gamma: 1.4}, beta=2.0).objective_args["gamma_beta_ratio"] == 0.7
    assert [r.message for r in caplog.records] == [f"argument: '{gamma}' 1.4 is gamma_beta_ratio 0.7 (beta 2)."]


def test_gamma_is_divided_by_the_default_beta():
    assert recipe(simpo_gamma="1.0").objective_args["gamma_beta_ratio"] == 0.5


def test_gamma_and_ratio_may_agree():
    assert recipe(simpo_gamma=1.4, gamma_beta_ratio=0.7).objective_args["gamma_beta_ratio"] == 0.7


def test_an_override_replaces_the_gamma_of_the_file_under_either_name(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("model_name_or_path: m\ndataset: d\ngamma_beta_ratio: 0.5\n")
    assert load_recipe(path, ["simpo_gamma=1.4"]).objective_args["gamma_beta_ratio"] == 0.7
    path.write_text("model_name_or_path: m\ndataset: d\nsimpo_gamma: 1.4\n")
    assert load_recipe(path, ["gamma_beta_ratio=0.3"]).objective_args["gamma_beta_ratio"] == 0.3
    assert load_recipe(path, ["beta=4"]).objective_args["gamma_beta_ratio"] == 0.35


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"warmup_ratio": 0.05}, 0.05),
        ({"warmup_ratio": 0.05, "warmup_steps": 0}, 0.05),
        ({"warmup_ratio": 0.0, "warmup_steps": 20}, 20),
        ({"warmup_ratio": 0}, 0),
    ],
)
def test_warmup_ratio_is_warmup_steps_below_one(given, steps):
    assert recipe(**given).training["warmup_steps"] == steps


def test_names_that_transformers_retired_are_read_as_the_new_ones():
    training = recipe(evaluation_strategy="steps", eval_dataset="h", gradient_checkpointing=True, no_cuda=True).training
    assert training["eval_strategy"] == "steps"
    assert training.get("activation_checkpointing", training.get("gradient_checkpointing")) is True
    assert training["use_cpu"] is True


def test_an_older_transformers_gets_the_older_name():
    from preftune.recipe.compat import rename
    from preftune.recipe.layers import Given

    older = {"gradient_checkpointing": bool}
    assert list(rename({"activation_checkpointing": Given(True, "x")}, older)) == ["gradient_checkpointing"]


@pytest.mark.parametrize("key", REFUSED)
def test_what_makes_no_sense_here_is_silently_fine_when_it_asks_for_nothing(key):
    assert key not in recipe(**{key: REFUSED[key][0][0]}).training


@pytest.mark.parametrize("value", [True, False])
def test_remove_unused_columns_is_silently_fine(value):
    assert recipe(remove_unused_columns=value).training["remove_unused_columns"] is value


def test_a_tracker_that_is_null_is_none():
    assert recipe(report_to=None).training["report_to"] == "none"
