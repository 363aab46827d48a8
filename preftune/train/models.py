"""The models of a recipe: the one that is trained, with its adapter or its frozen parts, and the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import ModelError
from preftune.model.freeze import check_trainable, freeze, trainable_summary
from preftune.model.heads import load_reward_model, set_pad_token
from preftune.model.load import load_model
from preftune.objectives.base import Reads
from preftune.recipe import Recipe

logger = logging.getLogger(__name__)


def load_trained_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that `recipe` trains: its weights, a new or a given adapter, frozen parts, a value head for rewards.

    `tokenizer` gets a padding token that a reward model can be read with.

    Raises:
        ModelError: it cannot be loaded, or what the recipe asks of it cannot be done; one line.
    """
    if (Path(recipe.model_name_or_path).expanduser() / "adapter_config.json").is_file():
        raise ModelError(
            f"'{recipe.model_name_or_path}' is an adapter. Give its base model as model_name_or_path, and this as "
            "adapter_name_or_path."
        )
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
    if recipe.adapter_name_or_path is not None:
        from preftune.model.lora import load_adapter

        model = load_adapter(model, recipe.adapter_name_or_path)
    elif recipe.use_peft:
        from preftune.model.lora import LoraSettings, add_adapter

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
        model = add_adapter(model, settings, task="SEQ_CLS" if scores else "CAUSAL_LM")
    if recipe.freeze:
        freeze(model, recipe.freeze)
    check_trainable(model)
    if recipe.freeze or recipe.trains_adapter:
        logger.info("Model: %s.", trainable_summary(model))
    return model


def load_reference_model(recipe: Recipe) -> PreTrainedModel | None:
    """The reference that a recipe names; None where it names none, and the model at the start is the reference."""
    if recipe.reference_model_name_or_path is None:
        return None
    loading = {**_loading(recipe), "revision": recipe.reference_model_revision}
    return load_model(recipe.reference_model_name_or_path, **loading)


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
