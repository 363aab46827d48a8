"""The models of a recipe: the one that is trained, with its adapter or its frozen parts, and the reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.chat import read_chat_format
from preftune.errors import ModelError
from preftune.model.freeze import check_trainable, freeze, trainable_summary
from preftune.model.heads import load_reward_model, set_pad_token
from preftune.model.load import load_model
from preftune.model.new_tokens import embed_new_tokens, modules_of_tokens
from preftune.objectives.base import Reads
from preftune.recipe import Recipe
from preftune.types import TokenizedGroup

if TYPE_CHECKING:
    from preftune.model.lora import LoraSettings

logger = logging.getLogger(__name__)


def load_trained_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = ()
) -> PreTrainedModel:
    """The model that `recipe` trains: its weights, a new or a given adapter, frozen parts, a value head for rewards.

    `tokenizer` gets a padding token that a reward model can be read with; `new_tokens` of it get rows that are trained.

    Raises:
        ModelError: it cannot be loaded, or what the recipe asks of it cannot be done; one line.
    """
    refuse_adapter(recipe)
    if recipe.lora_dropout and recipe.disable_dropout:
        logger.warning("lora_dropout %g has no effect: disable_dropout is true.", recipe.lora_dropout)
    scores = recipe.build_objective().reads == Reads.SCORES
    if scores:
        model = load_reward_model(recipe.model_name_or_path, **_loading(recipe), tokenizer=tokenizer)
        set_pad_token(model, tokenizer)
    else:
        model = _load(recipe)
    if model.dtype == torch.float16 and not getattr(model, "is_quantized", False):
        model.float()  # saved so and loaded with torch_dtype: auto; it needs loss scaling to train
    embed_new_tokens(model, new_tokens)
    if not scores:
        end_turns(model, tokenizer)
    if recipe.adapter_name_or_path is not None:
        from preftune.model.lora import load_adapter

        model = load_adapter(model, recipe.adapter_name_or_path)
    elif recipe.use_peft:
        from preftune.model.lora import add_adapter

        whole = _whole_modules(model, recipe, new_tokens)
        settings = lora_settings(recipe, modules_to_save=whole)
        model = add_adapter(model, settings, task="SEQ_CLS" if scores else "CAUSAL_LM")
    if recipe.freeze:
        freeze(model, recipe.freeze)
    if new_tokens and not any(weight.requires_grad for weight in model.get_input_embeddings().parameters()):
        said = "'freeze' covers" if recipe.freeze else "the adapter does not train"
        logger.warning(
            "The template's new tokens keep the rows they start with: %s the embeddings. Choose another chat_template, "
            "or set add_template_tokens: false.",
            said,
        )
    check_trainable(model)
    if recipe.freeze or recipe.trains_adapter:
        logger.info("Model: %s.", trainable_summary(model))
    return model


def refuse_adapter(recipe: Recipe) -> None:
    """An adapter stands where a model is expected.

    Raises:
        ModelError: it does.
    """
    if (Path(recipe.model_name_or_path).expanduser() / "adapter_config.json").is_file():
        raise ModelError(
            f"'{recipe.model_name_or_path}' is an adapter. Give its base model as model_name_or_path, and this as "
            "adapter_name_or_path."
        )


def lora_settings(recipe: Recipe, **instead: Any) -> LoraSettings:
    """The settings of a recipe's new adapter; `instead` replaces some.

    Raises:
        MissingExtraError: PEFT is not installed.
        RecipeError: a value is out of range.
    """
    from preftune.model.lora import LoraSettings

    settings = LoraSettings(
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        modules_to_save=recipe.lora_modules_to_save,
        rslora=recipe.use_rslora,
        dora=recipe.use_dora,
        init=recipe.lora_init,
    )
    return replace(settings, **instead)


def load_reference_model(recipe: Recipe, new_tokens: Sequence[int] = ()) -> PreTrainedModel | None:
    """The reference that a recipe names; None where it names none, and the model at the start is the reference.

    Where it does not embed `new_tokens`, it gets rows for them as the trained model did.
    """
    if recipe.reference_model_name_or_path is None:
        return None
    loading = {**_loading(recipe), "revision": recipe.reference_model_revision}
    reference = load_model(recipe.reference_model_name_or_path, **loading)
    if new_tokens and reference.config.get_text_config().vocab_size <= max(new_tokens):
        embed_new_tokens(reference, new_tokens)
    return reference


def end_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whoever loads the saved model stops where responses ended in training."""
    end, config = read_chat_format(tokenizer).end_id, model.generation_config
    if config is None:
        return
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if end not in known:
        config.eos_token_id = [end, *(other for other in known if other is not None)]


def _whole_modules(model: PreTrainedModel, recipe: Recipe, new_tokens: Sequence[int]) -> list[str] | None:
    """What is trained whole beside a new adapter: what was asked for, and the rows of new tokens."""
    asked = list(recipe.lora_modules_to_save or ())
    if not new_tokens:
        return asked or None
    paths = modules_of_tokens(model)
    more = [path for path in paths if not any(path == name or path.endswith(f".{name}") for name in asked)]
    if more:
        logger.info("%s are trained whole beside the adapter: new tokens have rows there.", ", ".join(more))
    return [*asked, *more]


def check_fits(
    config: PretrainedConfig,
    embedded: int,
    name: str | None,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[TokenizedGroup],
) -> None:
    """The model embeds every token, and has a position for each. Learned positions end where their table ends.

    Args:
        embedded: how many tokens the model has an embedding for.

    Raises:
        ModelError: it does not, or has not.
    """
    if len(tokenizer) > embedded:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens, but '{name}' embeds {embedded}. "
            "Set tokenizer_name_or_path to the model's own tokenizer."
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(groups, key=lambda group: len(group.prompt_ids) + max(map(len, group.response_ids)))
    tokens = len(longest.prompt_ids) + max(map(len, longest.response_ids))
    if limit is None or tokens <= limit:
        return
    said = f"{longest.origin} has {tokens} tokens, and '{name}' was made for {limit}"
    if not hasattr(config.get_text_config(), "rope_parameters"):
        raise ModelError(f"{said}. Set max_length: {limit} or less.")
    logger.warning("%s: expect poor log-probs, or set max_length: %d.", said, limit)


def check_positions(config: PretrainedConfig, max_length: int, name: str) -> None:
    """Of a stream the rows to come are not known, so learned positions must reach as far as the longest can.

    Raises:
        ModelError: they do not.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and max_length > limit and not hasattr(text, "rope_parameters"):
        raise ModelError(
            f"'{name}' was made for {limit} tokens, and rows of a stream may have {max_length}. "
            f"Set max_length: {limit} or less."
        )


def _load(recipe: Recipe) -> PreTrainedModel:
    return load_model(
        recipe.model_name_or_path,
        **_loading(recipe),
        load_in_4bit=recipe.load_in_4bit,
        load_in_8bit=recipe.load_in_8bit,
        quant_type=recipe.bnb_4bit_quant_type,
    )


def _loading(recipe: Recipe) -> dict[str, Any]:
    """float16 is a compute type here (autocast with loss scaling over float32 weights)."""
    return {
        "torch_dtype": "float32" if recipe.torch_dtype == "float16" else recipe.torch_dtype,
        "attn_implementation": recipe.attn_implementation,
        "revision": recipe.model_revision,
        "trust_remote_code": recipe.trust_remote_code,
    }
