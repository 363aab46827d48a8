"""What a run is: its data and weights, as a hash of their content, and the settings that decide its result."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from preftune.model.sharding import whole
from preftune.recipe import Recipe
from preftune.recipe.schema import SCHEMA_KEYS
from preftune.types import TokenizedGroup

# Keys of a recipe that a resumed run may have otherwise: where it writes, how the work is spread, and what is compared
# by the rows and the weights that it gives.
FREE = frozenset(
    "model_name_or_path tokenizer_name_or_path model_revision trust_remote_code dataset eval_dataset columns on_bad_row"
    " ranked_pairs dataset_splits dataset_configs dataset_catalog mixer_order test_split_size system_prompt streaming"
    " streaming_buffer max_length max_prompt_length truncation cut_response_end tokenization dedupe decontaminate"
    " dataset_num_proc tokens_cache sft_weight sft_normalization reference_model_name_or_path reference_model_revision"
    " precompute_reference reference_cache micro_batch_tokens total_batch_size share_prompt value_head_format"
    " chat_template chat_template_kwargs rescue_minutes on_nonfinite watch"
    " checkpoint_layers device_map watch_prompts watch_steps on_collapse record_margins".split()
)
# Fields of TrainingArguments that decide the result.
DECIDING = (
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio num_train_epochs max_steps"
    " weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon optim optim_args optim_target_modules seed"
    " data_seed bf16 fp16 tf32 neftune_noise_alpha".split()
)


def hash_groups(groups: Iterable[TokenizedGroup]) -> str:
    """Of all token ids, scores and weights, with the lengths that tell them apart.

    Tokenizer, template and truncation enter by the ids.
    """
    digest = hashlib.sha256()
    for group in groups:
        parts = [group.prompt_ids, *group.response_ids]
        digest.update(array("q", [len(parts), *map(len, parts)]).tobytes())
        for ids in parts:
            digest.update(array("q", ids).tobytes())
        digest.update(array("d", [*group.scores, group.weight]).tobytes())
    return digest.hexdigest()


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values. Of sharded weights every rank must ask."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = whole(weights[name]).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def run_settings(recipe: Recipe, args: Any) -> dict[str, Any]:
    """The settings of a recipe, with those of its `TrainingArguments`, that decide the result of a run."""
    own = {key: getattr(recipe, key) for key in SCHEMA_KEYS if key not in FREE}
    if recipe.trains_adapter:  # the checkpoint holds the adapter alone
        own["model_name_or_path"] = recipe.model_name_or_path
    given = {key: getattr(args, key) for key in DECIDING if hasattr(args, key)}
    return json.loads(json.dumps({**own, **recipe.objective_args, **given}, default=str))


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two of these, a phrase each; a key that only one of them has is of another release."""
    return [f"{key} {then[key]!r} then, {now[key]!r} now" for key in now if key in then and then[key] != now[key]]
