"""Guard rails: which settings are warned of, and which are not."""

from types import SimpleNamespace

import pytest

from preftune.recipe import load_recipe
from preftune.recipe.guards import bf16_guard, guard_rails, ppo_guard, template_guard

EIGHT_BILLION, SMALL = 8_000_000_000, 400_000_000


def recipe(**values):
    return load_recipe(None, {"model_name_or_path": "m", "dataset": "d", **values})


def warnings(parameters=EIGHT_BILLION, batch=128, **values):
    return guard_rails(recipe(**values), parameters, batch)


def test_the_published_settings_are_not_warned_of():
    for beta, ratio, rate in [(2, 0.8, 3e-7), (2.5, 0.1, 5e-7), (10, 0.3, 1e-6), (2, 0.5, 2e-6)]:
        assert warnings(beta=beta, gamma_beta_ratio=ratio, learning_rate=rate) == []


@pytest.mark.parametrize("objective", ["simpo", "alphapo", "cpo", "slic_hf", "rrhf"])
def test_a_high_rate_in_full_fine_tuning_is_warned_of(objective):
    (line,) = warnings(objective=objective, learning_rate=1e-5)
    assert line.startswith("learning_rate 1e-05 is above 2e-06 for full fine-tuning")
    assert "repeating text" in line


@pytest.mark.parametrize("values", [{"objective": "dpo"}, {"objective": "sft"}, {"objective": "orpo"}])
def test_a_high_rate_of_another_method_is_its_own_affair(values):
    assert warnings(learning_rate=1e-5, **values) == []


def test_a_mixture_with_simpo_is_like_simpo():
    (line,) = warnings(objective="mixture", mixture={"simpo": 1.0, "cpo": 0.5}, learning_rate=1e-5)
    assert line.startswith("learning_rate")


def test_a_margin_of_more_than_two_nats_a_token_is_warned_of():
    (line,) = warnings(beta=0.1, simpo_gamma=0.5)
    assert line.startswith("gamma_beta_ratio 5 (beta 0.1, gamma 0.5) asks for 5 nats per token")
    assert warnings(beta=0.25, simpo_gamma=0.5) == []


def test_simpo_with_an_adapter_is_warned_of_and_its_rate_is_not():
    (line,) = warnings(use_peft=True, learning_rate=5e-5)
    assert "LoRA" in line and "Full fine-tuning is recommended" in line
    assert warnings(objective="dpo", use_peft=True, learning_rate=5e-5) == []


@pytest.mark.parametrize("batch", [1, 8, 32, 63, 257, 1024])
def test_a_batch_far_from_128_is_warned_of_with_the_remedy(batch):
    (line,) = warnings(batch=batch)
    assert f"A step has {batch} groups" in line and "total_batch_size=128" in line


@pytest.mark.parametrize("batch", [64, 120, 128, 256])
def test_a_batch_near_128_is_not(batch):
    assert warnings(batch=batch) == []


@pytest.mark.parametrize("objective", ["sft", "reward"])
def test_the_batch_of_what_does_not_compare_by_log_probs_is_not_judged(objective):
    assert warnings(objective=objective, batch=8) == []


def test_small_models_get_no_false_alarm():
    wild = {"learning_rate": 1e-3, "beta": 0.1, "gamma_beta_ratio": 10, "batch": 4}
    assert len(warnings(**wild)) == 3
    assert warnings(parameters=SMALL, **wild) == []
    assert warnings(parameters=SMALL, use_peft=True) == []


@pytest.mark.parametrize(
    ("values", "beginning", "remedy"),
    [
        ({"bf16": True}, "bf16: Tesla V100 ", "fp16: true"),
        (
            {"torch_dtype": "bfloat16"},
            "torch_dtype bfloat16: Tesla V100 ",
            "Set float16; preftune rlhf chooses by itself with --dtype AUTO",
        ),
    ],
)
def test_bfloat16_on_a_card_without_it_is_warned_of(values, beginning, remedy):
    line = bf16_guard(recipe(**values), "Tesla V100")
    assert line.startswith(beginning) and remedy in line
    assert bf16_guard(recipe(**values), None) is None


def test_other_precisions_need_no_bfloat16():
    assert bf16_guard(recipe(fp16=True), "Tesla V100") is None


def test_several_turns_without_a_template_are_warned_of():
    assert "chat_template: chatml" in template_guard(has_template=False, multi_turn=True)
    assert template_guard(has_template=True, multi_turn=True) is None
    assert template_guard(has_template=False, multi_turn=False) is None


def test_ppo_on_a_base_model_is_warned_of_and_on_one_that_is_not_known_is_not():
    ppo = SimpleNamespace(objective="ppo", model_name_or_path="my-base")
    line = ppo_guard(ppo, has_template=False)
    assert line.startswith("ppo: 'my-base' has no chat template of its own") and "preftune sft" in line
    assert ppo_guard(ppo, has_template=True) is None and ppo_guard(ppo, has_template=None) is None
    assert ppo_guard(recipe(objective="dpo"), has_template=False) is None


def test_the_batch_is_said_with_the_processes_that_make_it():
    assert "A step has 32 groups (in 1 process), far" in warnings(batch=32)[0]
    (line,) = guard_rails(recipe(), EIGHT_BILLION, 32, 2)
    assert "A step has 32 groups (in 2 processes), far" in line


def test_simpo_with_an_adapter_in_a_mixture_is_warned_of_whatever_stands_beside_it():
    (line,) = warnings(objective="mixture", mixture={"cpo": 0.5, "simpo": 1.0}, use_peft=True)
    assert line.startswith("simpo with LoRA")
