"""A recipe with objective: ppo: its keys, TRL's names for them, and what contradicts sampling."""

import pytest

from preftune.errors import RecipeError
from preftune.recipe import describe_objective, load_recipe
from preftune.train.check import check_data

BASE = {"model_name_or_path": "m", "dataset": "p.jsonl", "objective": "ppo"}
REWARD = {**BASE, "reward_model_name_or_path": "r"}


def test_a_recipe_is_written_and_read_back(tmp_path):
    recipe = load_recipe(None, {**REWARD, "gamma": 0.9, "num_ppo_epochs": 2})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.objective_args["gamma"] == 0.9 and recipe.training["learning_rate"] == 3e-6
    assert "0.05·(log π - log π_ref) per token, gamma 0.9" in describe_objective(recipe)


def test_the_keys_of_trls_ppo_config_are_understood(caplog):
    with caplog.at_level("INFO"):
        recipe = load_recipe(
            None,
            {
                "sft_model_path": "m", "reward_model_path": "r", "dataset_name": "p.jsonl", "objective": "ppo",
                "exp_name": "ppo_config", "kl_estimator": "k1", "stop_token_id": None, "num_sample_generations": 10,
                "total_episodes": None, "kl_coef": 0.03, "num_mini_batches": 2, "missing_eos_penalty": 1.0,
            },
        )  # fmt: skip
    own = recipe.objective_args
    assert (recipe.model_name_or_path, own["reward_model_name_or_path"]) == ("m", "r")
    assert (own["kl_coef"], own["num_mini_batches"], own["missing_eos_penalty"]) == (0.03, 2, 1.0)
    assert "'num_sample_generations' has no effect" in caplog.text


WRONG = [
    (BASE, {}, "ppo needs a reward"),
    (REWARD, {"reward_function": "a:b"}, "both say what a response is worth"),
    (BASE, {"reward_function": "a.b"}, "'reward_function' must be module:function"),
    (BASE, {"reward_function": "a:b", "reward_endpoint": "http://h/v1"}, "'reward_endpoint' http://h/v1 both say"),
    (BASE, {"reward_endpoint": "http://h/v1"}, "'reward_judge' is missing: say which model at http://h/v1"),
    (REWARD, {"reward_judge": "m"}, "'reward_judge' m has no effect: reward_endpoint is not set"),
    (REWARD, {"response_length": 1024}, "leaves no room for a prompt in 'max_length' 1024"),
    (REWARD, {"max_prompt_length": 600}, "Set max_length: 1112"),
    (REWARD, {"sft_weight": 0.1}, "ppo samples its own"),
    (REWARD, {"streaming": True, "max_steps": 4}, "'streaming' true has no effect"),
    (REWARD, {"optimizer_state": "8bit"}, "'optimizer_state' '8bit' has no effect"),
    (REWARD, {"master_weights": "split"}, "'master_weights' split is not for ppo"),
    (REWARD, {"ranked_pairs": "all"}, "ppo samples its responses, and reads none"),
    (REWARD, {"tokenization": "princeton"}, "ppo samples by the chat template"),
    (REWARD, {"fsdp": "full_shard"}, "'fsdp' is not for ppo"),
    (REWARD, {"lr_scheduler_type": "reduce_lr_on_plateau"}, "which has no loss to wait for"),
    (REWARD, {"kl_estimator": "k3"}, "'kl_estimator' k3 is not supported"),
    (REWARD, {"num_mini_batch": 2}, "did you mean 'num_mini_batches'"),
    (REWARD, {"gamma_beta_ratio": 0.5}, "'gamma_beta_ratio' is a key of simpo"),
    ({**BASE, "objective": "simpo"}, {"kl_coef": 0.1}, "'kl_coef' is a key of ppo, but 'objective' is simpo"),
    ({**BASE, "objective": "ppoo"}, {}, "did you mean 'ppo'"),
]


@pytest.mark.parametrize(("base", "more", "said"), WRONG, ids=[said[:30] for _, _, said in WRONG])
def test_a_contradiction_is_one_line(base, more, said):
    with pytest.raises(RecipeError) as error:
        load_recipe(None, {**base, **more})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_check_says_that_it_looks_at_responses():
    with pytest.raises(RecipeError, match="check looks at responses"):
        check_data(load_recipe(None, REWARD), tokenizer=None)
