"""The models of a PPO run: policy, reference, value model and reward, on the run's device and without dropout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import ModelError
from preftune.model.freeze import trainable_summary
from preftune.model.heads import load_reward_model, to_scorer
from preftune.model.load import disable_dropout, has_tokenizer, load_tokenizer
from preftune.model.new_tokens import embed_new_tokens
from preftune.model.policy import to_policy
from preftune.model.reference import FrozenModel, Reference, own_reference
from preftune.objectives.ppo import PPO
from preftune.recipe import Recipe
from preftune.train.arguments import PreferenceArguments
from preftune.train.models import load_reference_model, load_trained_model, lora_settings
from preftune.train.ppo.judged import load_judge
from preftune.train.ppo.rewards import ModelReward, Reward, check_vocabulary, load_function

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """policy and value (a scorer that is read at every token) are trained; the other two are not."""

    policy: Any
    value: Any
    reference: Reference
    reward: Reward


def load_models(
    recipe: Recipe, ppo: PPO, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int], args: PreferenceArguments
) -> Models:
    """Load all of them; the value model starts from the reward model, or without a reward model from the policy's.

    Raises:
        PreftuneError: one cannot be loaded, the reward model has no head, or reads other tokens.
    """
    reward = _reward_without_model(recipe, ppo)
    if reward is None:
        _check_tokens(recipe, ppo, tokenizer)
    policy = load_trained_model(recipe, tokenizer, new_tokens)
    value = _load_value_model(recipe, ppo, tokenizer, new_tokens)
    named = load_reference_model(recipe, new_tokens)
    low = torch.bfloat16 if args.bf16 else torch.float16
    with torch.autocast(args.device.type, low, enabled=args.bf16 or args.fp16):  # preflights run as training runs
        to_policy(_placed(policy, args), recipe.road)
        to_scorer(_placed(value, args), recipe.road)
        if reward is None:
            scorer = to_scorer(_placed(_load_scorer(recipe, ppo), args), recipe.road)
            reward = ModelReward(scorer.requires_grad_(False).eval(), ppo.local_rollout_forward_batch_size)
        frozen = None if named is None else FrozenModel(to_policy(_placed(named, args), recipe.road))
    return Models(policy, value, frozen or own_reference(policy), reward)


def _reward_without_model(recipe: Recipe, ppo: PPO) -> Reward | None:
    if ppo.reward_function:
        return load_function(ppo.reward_function)
    return load_judge(ppo, recipe.output_dir) if ppo.reward_endpoint else None


def _placed(model: Any, args: PreferenceArguments) -> Any:
    disable_dropout(model)
    return model if getattr(model, "is_quantized", False) else model.to(args.device)


def _load_scorer(recipe: Recipe, ppo: PPO) -> PreTrainedModel:
    """The reward model; one without a head is refused, never given a new one."""
    assert ppo.reward_model_name_or_path is not None
    model = load_reward_model(
        ppo.reward_model_name_or_path,
        torch_dtype="float32" if recipe.torch_dtype == "float16" else recipe.torch_dtype,
        attn_implementation=recipe.attn_implementation,
        revision=ppo.reward_model_revision,
        trust_remote_code=recipe.trust_remote_code,
        new_head=False,
    )
    return model.float() if model.dtype == torch.float16 else model


def _load_value_model(
    recipe: Recipe, ppo: PPO, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int]
) -> PreTrainedModel:
    if ppo.reward_model_name_or_path:
        value = _load_scorer(recipe, ppo)
    else:
        logger.info("Value model: '%s' with a new head, as no reward model is named.", recipe.model_name_or_path)
        value = load_reward_model(
            recipe.model_name_or_path,
            torch_dtype="float32" if recipe.torch_dtype == "float16" else recipe.torch_dtype,
            attn_implementation=recipe.attn_implementation,
            revision=recipe.model_revision,
            trust_remote_code=recipe.trust_remote_code,
        )
        if new_tokens and value.get_input_embeddings().weight.shape[0] <= max(new_tokens):
            embed_new_tokens(value, new_tokens)
        value = value.float() if value.dtype == torch.float16 else value
    embedded = value.get_input_embeddings().weight.shape[0]
    if embedded < len(tokenizer):
        raise ModelError(f"The value model embeds {embedded} tokens, and the policy's tokenizer has {len(tokenizer)}.")
    if recipe.trains_adapter:
        from preftune.model.lora import add_adapter  # the extra `lora`

        names = [name for name, _ in value.named_modules()]
        whole = [w for w in recipe.lora_modules_to_save or () if any(n == w or n.endswith(f".{w}") for n in names)]
        value = add_adapter(value, lora_settings(recipe, modules_to_save=whole or None), task="SEQ_CLS")
        logger.info("Value model: %s.", trainable_summary(value))
    return value


def _check_tokens(recipe: Recipe, ppo: PPO, tokenizer: PreTrainedTokenizerBase) -> None:
    name = ppo.reward_model_name_or_path
    assert name is not None
    if has_tokenizer(name):
        theirs = load_tokenizer(
            name, revision=ppo.reward_model_revision, trust_remote_code=recipe.trust_remote_code
        ).get_vocab()
        check_vocabulary(name, theirs, tokenizer.get_vocab())
