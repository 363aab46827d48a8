"""The recipe keys that are `transformers.TrainingArguments` fields: their names and types, our defaults, our limits.

`transformers` is imported when the first name is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

# Where our defaults differ from those of TrainingArguments, and why.
TRAINING_DEFAULTS: dict[str, object] = {
    "learning_rate": 1.0e-6,  # preference losses collapse at 5e-5; the published grid is 3e-7 to 1e-6
    "lr_scheduler_type": "cosine",  # as published
    "warmup_steps": 0.1,  # below 1: a share of all steps; as published
    "num_train_epochs": 1,  # as published
    "logging_steps": 10,
    "report_to": "none",  # log.jsonl is always written; a tracker is asked for by name
    "save_total_limit": 2,  # a checkpoint holds the optimizer too: 12 bytes a parameter and more
    "seed": 42,
}

# Defaults that depend on the objective, over the table above.
OBJECTIVE_TRAINING_DEFAULTS: dict[str, dict[str, object]] = {
    "sft": {"learning_rate": 2.0e-5},  # plain likelihood needs the larger steps of ordinary fine-tuning
    "reward": {"learning_rate": 1.0e-5},  # a fresh head has far to go
    "ppo": {"learning_rate": 3.0e-6},  # small clipped steps, several on each rollout
}

# Adapters start at zero and have few weights: about fifty times the step of full weights, as in the published recipes.
ADAPTER_LEARNING_RATE = 5.0e-5

# Fields whose annotation is narrower than what the Trainer takes.
_WIDER: dict[str, Any] = {"resume_from_checkpoint": bool | str | None, "fsdp": bool | str | None}

_ABOVE_0: tuple[Callable[[Any], bool], str] = (lambda value: value > 0, "above 0")
_AT_LEAST_0: tuple[Callable[[Any], bool], str] = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
_BELOW_1: tuple[Callable[[Any], bool], str] = (lambda value: 0 <= value < 1, "at least 0 and below 1")

# What a number must be, for the keys that are used as they stand.
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": _AT_LEAST_0,
    "num_train_epochs": _ABOVE_0,
    "warmup_steps": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "max_grad_norm": _AT_LEAST_0,
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    "adam_epsilon": _ABOVE_0,
    "max_steps": (lambda value: value == -1 or value >= 1, "-1 (as num_train_epochs says) or at least 1"),
    "logging_steps": _ABOVE_0,
    "save_steps": _ABOVE_0,
    "eval_steps": _ABOVE_0,
    "save_total_limit": _AT_LEAST_1,
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "dataloader_num_workers": _AT_LEAST_0,
    "seed": _AT_LEAST_0,
    "max_length": (lambda value: value >= 2, "at least 2 (one prompt token, one response token)"),
    "max_prompt_length": _AT_LEAST_1,
    "sft_weight": _AT_LEAST_0,
    "dataset_num_proc": _AT_LEAST_1,
    "test_split_size": _ABOVE_0,
    "streaming_buffer": _AT_LEAST_1,
    "lora_r": _AT_LEAST_1,
    "lora_alpha": _ABOVE_0,
    "lora_dropout": _BELOW_1,
    "micro_batch_tokens": _AT_LEAST_1,
    "total_batch_size": _AT_LEAST_1,
    "rescue_minutes": _AT_LEAST_0,
    "watch_prompts": _AT_LEAST_1,
    "watch_steps": _AT_LEAST_1,
    "checkpoint_layers": (lambda value: value == "auto" or value >= 0, "auto or at least 0"),
}


@cache
def training_kinds() -> dict[str, Any]:
    """Name and type of every field of the installed `TrainingArguments`."""
    from transformers import TrainingArguments

    return {field.name: _WIDER.get(field.name, field.type) for field in fields(TrainingArguments) if field.init}


def training_defaults(objective: str, evaluates: bool, adapter: bool) -> dict[str, object]:
    """Our defaults for an objective; with an evaluation set, it is evaluated at the end of every epoch."""
    strategy: dict[str, object] = {"eval_strategy": "epoch"} if evaluates else {}
    return {
        "output_dir": f"runs/{objective}",
        **TRAINING_DEFAULTS,
        **OBJECTIVE_TRAINING_DEFAULTS.get(objective, {}),
        **({"learning_rate": ADAPTER_LEARNING_RATE} if adapter else {}),
        **strategy,
    }
