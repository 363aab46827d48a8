"""What a recipe with objective: ppo must fulfil beside the ranges of its own keys.

It samples its responses, so keys about given responses would do nothing, and say so; a reward has to be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from preftune.errors import RecipeError

if TYPE_CHECKING:
    from preftune.recipe.schema import Recipe

_OF_RESPONSES = ("ranked_pairs", "cut_response_end", "sft_normalization", "value_head_format")
_ONCE = ("precompute_reference", "tokens_cache", "dataset_num_proc", "streaming")
_OTHER_LOOP = ("optimizer_state", "checkpoint_layers")
_REWARDS = ("reward_function", "reward_endpoint", "reward_model_name_or_path")
_SHARDED = ("deepspeed", "fsdp")


def check_ppo(recipe: Recipe) -> None:
    """Refuse a ppo recipe without a reward, and keys that contradict sampling.

    Raises:
        RecipeError: with the keys, their values and the remedy.
    """
    _check_reward(recipe)
    _check_room(recipe)
    if recipe.sft_weight:
        raise RecipeError(
            f"'sft_weight' {recipe.sft_weight:g} needs given responses; ppo samples its own. Leave it out."
        )
    reasons = {
        **dict.fromkeys(_OF_RESPONSES, "ppo samples its responses, and reads none"),
        **dict.fromkeys(_ONCE, "ppo reads prompts alone, and scores new responses in every step"),
        **dict.fromkeys(_OTHER_LOOP, "ppo trains in a loop of its own"),
    }
    defaults = {field.name: field.default for field in fields(recipe)}
    for key, because in reasons.items():
        value = getattr(recipe, key)
        if value != defaults[key]:
            said = str(value).lower() if isinstance(value, bool) else repr(value)
            raise RecipeError(f"'{key}' {said} has no effect: {because}. Leave it out.")
    if recipe.master_weights == "split":
        raise RecipeError("'master_weights' split is not for ppo. Set master_weights: true.")
    if not recipe.disable_dropout:
        raise RecipeError("'disable_dropout' false is not for ppo: its ratios compare with log-probs without dropout.")
    if recipe.tokenization != "preftune":
        raise RecipeError(f"'tokenization' {recipe.tokenization} is for pairs; ppo samples by the chat template.")
    _check_training(recipe)


def _check_reward(recipe: Recipe) -> None:
    own = recipe.objective_args
    model, function = own["reward_model_name_or_path"], own["reward_function"]
    named = [key for key in _REWARDS if own[key]]
    if len(named) > 1:
        raise RecipeError(
            f"'{named[0]}' {own[named[0]]} and '{named[1]}' {own[named[1]]} both say what a response is worth. "
            "Keep one of them."
        )
    if not named:
        raise RecipeError(
            "'reward_model_name_or_path' is missing: ppo needs a reward. Name a reward model (objective: reward trains "
            "one), a Python function (reward_function: my_module:my_function), or a judge (reward_endpoint)."
        )
    _check_judge(own)
    if function and not all(part for part in function.partition(":")):
        raise RecipeError(f"'reward_function' must be module:function, found {function!r}.")
    if not model and own["reward_model_revision"] != "main":
        raise RecipeError("'reward_model_revision' has no effect: reward_model_name_or_path is not set. Leave it out.")


def _check_judge(own: Mapping[str, Any]) -> None:
    """An endpoint has a judge, and nothing is said of a judge without one."""
    endpoint = own["reward_endpoint"]
    if endpoint and not own["reward_judge"]:
        raise RecipeError(f"'reward_judge' is missing: say which model at {endpoint} rates the responses.")
    for key, default in (("reward_judge", None), ("reward_template", None), ("reward_key_from", "OPENAI_API_KEY")):
        if not endpoint and own[key] != default:
            raise RecipeError(f"'{key}' {own[key]} has no effect: reward_endpoint is not set. Leave it out.")


def _check_room(recipe: Recipe) -> None:
    """max_length is prompt and response together, as everywhere."""
    response, prompt, longest = recipe.objective_args["response_length"], recipe.max_prompt_length, recipe.max_length
    if response >= longest:
        raise RecipeError(
            f"'response_length' {response} leaves no room for a prompt in 'max_length' {longest}. "
            "Lower the one or raise the other."
        )
    if prompt is not None and prompt + response > longest:
        raise RecipeError(
            f"'max_prompt_length' {prompt} and 'response_length' {response} are together above 'max_length' {longest}. "
            f"Set max_length: {prompt + response}, or lower them."
        )


def _check_training(recipe: Recipe) -> None:
    training = recipe.training
    for key in _SHARDED:
        if training.get(key):
            raise RecipeError(
                f"'{key}' is not for ppo: it generates with whole weights. Leave it out; a process a GPU trains with "
                "copies of them."
            )
    if training.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        raise RecipeError("'lr_scheduler_type' reduce_lr_on_plateau is not for ppo, which has no loss to wait for.")
    for key, harmless in (
        ("use_liger_kernel", False),
        ("torch_compile", False),
        ("torch_compile_backend", None),
        ("torch_compile_mode", None),
        ("push_to_hub", False),
        ("load_best_model_at_end", False),
        ("neftune_noise_alpha", None),
    ):
        if training.get(key, harmless) not in (harmless, None):
            remedy = "Upload the run folder with `preftune push`." if key == "push_to_hub" else "Leave it out."
            raise RecipeError(f"'{key}' {str(training[key]).lower()} is not for ppo. {remedy}")
