"""Which recipes can train together."""

import pytest

from preftune.recipe import load_recipe
from preftune.recipe.together import differences, obstacle


def recipe(**keys):
    return load_recipe(None, {"model_name_or_path": "m", "dataset": "d.jsonl", "use_peft": True, **keys})


@pytest.mark.parametrize(
    "keys, reason",
    [
        ({"use_peft": False}, "'use_peft' is false"),
        ({"objective": "ppo", "reward_model_name_or_path": "r"}, "'objective' ppo answers prompts"),
        ({"objective": "reward"}, "'objective' reward trains a value head"),
        ({"disable_dropout": False, "lora_dropout": 0.1}, "'disable_dropout' is false"),
        ({"use_dora": True}, "'use_dora' is True"),
        ({"lora_init": "pissa"}, "'lora_init' is 'pissa'"),
        ({"gradient_checkpointing": True}, "'activation_checkpointing' is True"),
        ({"device_map": "auto"}, "'device_map' is 'auto'"),
        ({"streaming": True, "max_steps": 5}, "'streaming' is True"),
    ],
)
def test_what_cannot_be_joined_has_a_reason(keys, reason):
    assert obstacle(recipe(**keys)).startswith(reason)


def test_optimizer_schedule_and_objective_may_differ():
    one = recipe(learning_rate=1e-5, beta=2.0, output_dir="a")
    two = recipe(learning_rate=2e-5, gamma_beta_ratio=0.3, sft_weight=0.1, warmup_steps=3, output_dir="b")
    dpo = recipe(objective="dpo", precompute_reference=True, reference_cache="c", output_dir="c")
    assert obstacle(one) is None
    assert differences(one, two) == differences(one, dpo) == []


def test_data_model_adapter_seed_and_layout_may_not():
    assert differences(recipe(), recipe(seed=1)) == ["seed"]
    assert differences(recipe(), recipe(lora_r=8, total_batch_size=4)) == ["lora_r", "total_batch_size"]
    assert differences(recipe(), recipe(objective="kto")) == ["the objective's layout"]
