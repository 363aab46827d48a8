"""Keys of TRL's configs in a recipe."""

import logging

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe
from preftune.recipe.trl import TRL_IGNORED, TRL_REFUSED

MINIMAL = {"model_name_or_path": "m", "dataset": "d"}

# What the configs of TRL 1.16 hold beside the fields of TrainingArguments, with their defaults.
CONFIGS = {
    "dpo": {
        "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "disable_dropout": True,
        "dataset_num_proc": None, "max_length": 1024, "truncation_mode": "keep_start", "padding_free": False,
        "pad_to_multiple_of": "auto", "precompute_ref_log_probs": False, "precompute_ref_batch_size": None,
        "loss_type": ["sigmoid"], "loss_weights": None, "ld_alpha": None, "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5, "label_smoothing": 0.0, "beta": 0.1, "use_weighting": False,
        "discopop_tau": 0.05, "activation_offloading": False, "sync_ref_model": False, "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512, "pad_token": None, "bf16": None,
    },
    "kto": {
        "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "disable_dropout": True,
        "dataset_num_proc": None, "max_length": 1024, "pad_to_multiple_of": "auto", "precompute_ref_log_probs": False,
        "precompute_ref_batch_size": None, "loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0,
        "undesirable_weight": 1.0, "activation_offloading": False, "sync_ref_model": False,
        "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512, "bf16": None,
    },
    "reward": {
        "model_init_kwargs": None, "trust_remote_code": False, "chat_template_path": None, "disable_dropout": True,
        "dataset_num_proc": None, "eos_token": None, "max_length": 1024, "pad_to_multiple_of": "auto",
        "center_rewards_coefficient": None, "activation_offloading": False, "pad_token": None, "bf16": None,
    },
    "cpo": {
        "max_length": 1024, "max_completion_length": None, "beta": 0.1, "label_smoothing": 0.0, "loss_type": "sigmoid",
        "disable_dropout": True, "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0, "generate_during_eval": False,
        "is_encoder_decoder": None, "model_init_kwargs": None, "trust_remote_code": False, "dataset_num_proc": None,
    },
    "orpo": {
        "max_length": 1024, "max_completion_length": None, "beta": 0.1, "disable_dropout": True, "padding_value": None,
        "generate_during_eval": False, "is_encoder_decoder": None, "model_init_kwargs": None,
        "trust_remote_code": False, "dataset_num_proc": None,
    },
}  # fmt: skip


def recipe(**values):
    return load_recipe(None, {**MINIMAL, **values})


@pytest.mark.parametrize("objective", CONFIGS)
def test_a_whole_config_of_trl_is_understood(objective):
    found = recipe(objective=objective, **CONFIGS[objective])
    assert (found.objective, found.max_length, found.disable_dropout) == (objective, 1024, True)


@pytest.mark.parametrize(
    ("loss_type", "objective", "keys"),
    [
        ("sigmoid", "dpo", {"loss_type": "sigmoid"}),
        ("hinge", "dpo", {"loss_type": "hinge"}),
        ("robust", "dpo", {"loss_type": "robust"}),
        ("ipo", "ipo", {"tau": 0.3, "normalize": "length"}),
        ("exo_pair", "exo_pair", {"beta": 0.3}),
        ("nca_pair", "nca_pair", {"beta": 0.3}),
        ("bco_pair", "bco_pair", {"beta": 0.3}),
        ("sppo_hard", "sppo_hard", {"beta": 0.3}),
        ("aot", "aot", {"loss_type": "paired", "beta": 0.3}),
        ("aot_unpaired", "aot", {"loss_type": "unpaired", "beta": 0.3}),
        ("apo_zero", "apo_zero", {"beta": 0.3}),
        ("apo_down", "apo_down", {"beta": 0.3}),
        ("discopop", "discopop", {"tau": 0.07, "beta": 0.3}),
        ("sigmoid_norm", "dpo_norm", {"beta": 0.3}),
    ],
)
@pytest.mark.parametrize("wrap", [lambda name: name, lambda name: [name]], ids=["name", "list"])
def test_a_loss_of_dpoconfig_is_an_objective(loss_type, objective, keys, wrap):
    found = recipe(objective="dpo", loss_type=wrap(loss_type), beta=0.3, label_smoothing=0.0, discopop_tau=0.07)
    assert found.objective == objective
    assert {key: found.objective_args[key] for key in keys} == keys


def test_a_loss_by_its_older_name():
    assert recipe(objective="dpo", loss_type="aot_pair").objective_args["loss_type"] == "unpaired"


def test_several_losses_are_a_mixture():
    found = recipe(objective="dpo", loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], beta=0.2)
    assert found.objective == "mixture"
    assert found.objective_args["mixture"] == {
        "dpo": {"weight": 0.8, "loss_type": "sigmoid", "beta": 0.2},
        "bco_pair": {"weight": 0.2, "beta": 0.2},
    }
    assert (found.sft_weight, found.sft_normalization) == (1.0, "token")


def test_losses_without_weights_weigh_one():
    found = recipe(objective="dpo", loss_type=["sigmoid", "ipo"], beta=0.2)
    assert found.objective_args["mixture"]["ipo"] == {"weight": 1.0, "normalize": "length", "tau": 0.2}
    assert found.objective_args["mixture"]["dpo"]["weight"] == 1.0


def test_simpo_as_a_loss_of_cpo_says_where_the_defaults_differ(caplog):
    with caplog.at_level(logging.INFO):
        found = recipe(objective="cpo", loss_type="simpo", simpo_gamma=0.5, beta=2.0, cpo_alpha=0.0)
    assert (found.objective, found.objective_args["gamma_beta_ratio"], found.sft_weight) == ("simpo", 0.25, 0.0)
    assert "TRL's defaults are beta 0.1, simpo_gamma 0.5 and cpo_alpha 1" in caplog.text


def test_alpha_makes_simpo_alphapo():
    found = recipe(objective="cpo", loss_type="simpo", alpha=0.25, simpo_gamma=0.5, beta=2.0)
    assert (found.objective, found.objective_args["alpha"]) == ("alphapo", 0.25)


def test_a_gamma_beside_another_loss_has_no_effect(caplog):
    with caplog.at_level(logging.INFO):
        assert recipe(objective="cpo", simpo_gamma=0.5).objective == "cpo"
    assert "'simpo_gamma' has no effect" in caplog.text


def test_an_override_may_choose_the_loss_of_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("model_name_or_path: m\ndataset: d\nobjective: dpo\nloss_type: sigmoid\n")
    assert load_recipe(tmp_path / "a.yaml", ["loss_type=ipo"]).objective == "ipo"


def test_model_init_kwargs_are_keys():
    kwargs = {"dtype": "bfloat16", "attn_implementation": "eager", "revision": "v2"}
    found = recipe(model_init_kwargs=kwargs)
    assert (found.torch_dtype, found.attn_implementation, found.model_revision) == ("bfloat16", "eager", "v2")
    with pytest.raises(RecipeError, match=r"'model_init_kwargs.device_map' is not known"):
        recipe(model_init_kwargs={"device_map": "auto"})


def test_other_names():
    found = load_recipe(None, {"model_name_or_path": "m", "dataset_name": "d", "chat_template_path": "t.jinja"})
    assert (found.dataset, found.chat_template) == ("d", "t.jinja")


@pytest.mark.parametrize("key", TRL_IGNORED)
def test_a_key_without_effect_says_so(key, caplog):
    with caplog.at_level(logging.INFO):
        assert recipe(**{key: True}) == recipe()
    assert f"'{key}' has no effect" in caplog.text


@pytest.mark.parametrize("key", TRL_REFUSED)
def test_a_key_that_would_do_something_else_is_refused(key):
    with pytest.raises(RecipeError, match=f"'{key}' other is not supported"):
        recipe(**{key: "other"})
    assert recipe(**{key: TRL_REFUSED[key][0][0]}) == recipe()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": "cpo", "loss_type": "ipo"}, "'loss_type' ipo is no loss of cpo here"),
        ({"objective": "kto", "loss_type": "apo_zero_unpaired"}, "apo_zero trains on pairs"),
        ({"objective": "dpo", "loss_type": "sigmod"}, "one of sigmoid, hinge, robust, ipo"),
        ({"objective": "dpo", "loss_type": ["sigmoid", "ipo"], "loss_weights": [1]}, "one weight for each of 2 losses"),
        ({"objective": "dpo", "loss_type": ["sigmoid", "hinge"]}, "holds dpo twice"),
    ],
)
def test_a_loss_that_is_not_there_is_refused(values, said):
    with pytest.raises(RecipeError, match=said):
        recipe(**values)
