"""Which recipes can train together: adapters over one frozen base, in one process and in the same packed steps.

They read the same rows in the same order with the same model, and start from the same adapter. What is done with the
log-probs of a step and with the gradient that comes back is each candidate's own: `OWN`, and the objective's keys.
"""

from __future__ import annotations

from typing import Any

from preftune.objectives import ON_POLICY, objective_class
from preftune.objectives.base import Reads
from preftune.recipe.schema import Recipe

# Keys that candidates may have otherwise, beside those of their objectives.
OWN = frozenset(
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay max_grad_norm"
    " adam_beta1 adam_beta2 adam_epsilon objective sft_weight sft_normalization precompute_reference reference_cache"
    " output_dir".split()
)
# Keys that must be as they are by default, with the reason where they are not.
_LAYERS = "it changes the decoder's layers"
_ONE = "it is one for the whole process"
NEEDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "adapter_name_or_path": ((None,), "candidates start from a new adapter"),
    "lora_modules_to_save": ((None,), "whole modules are not shared"),
    "use_dora": ((False,), "DoRA is more than two factors"),
    "lora_init": ((True, "gaussian"), "PiSSA and OLoRA change the base weights"),
    "load_in_4bit": ((False,), "quantised weights have not been tried so"),
    "load_in_8bit": ((False,), "quantised weights have not been tried so"),
    "freeze": ((None,), "an adapter is all that may be trained"),
    "reference_model_name_or_path": ((None,), "the base model is the reference"),
    "streaming": ((False,), "a stream is read once"),
    "checkpoint_layers": ((None,), _LAYERS),
    "activation_checkpointing": ((False, None), _LAYERS),
    "gradient_checkpointing": ((False, None), _LAYERS),  # as earlier releases of transformers call it
    "torch_compile": ((False, None), _LAYERS),
    "device_map": ((None,), "each trainer would move the base model that all share"),
    "use_liger_kernel": ((False, None), _LAYERS),
    "neftune_noise_alpha": ((None,), "its noise is drawn for one model"),
    "fp16": ((False, None), "its loss scale is one for all"),
    "fsdp": ((None, False, "", []), "it is for several processes"),
    "deepspeed": ((None,), "it is for several processes"),
    "dataloader_num_workers": ((0, None), _ONE),
    "report_to": (("none", None, []), _ONE),
    "push_to_hub": ((False, None), _ONE),
}


def obstacle(recipe: Recipe) -> str | None:
    """Why a recipe cannot train together with others like it, or None."""
    if recipe.objective in ON_POLICY:
        return f"'objective' {recipe.objective} answers prompts while it trains"
    if not recipe.use_peft:
        return "'use_peft' is false, and each run has a base model of its own"
    if objective_class(recipe.objective).reads != Reads.LOGPS:
        return f"'objective' {recipe.objective} trains a value head"
    if not recipe.disable_dropout:
        return "'disable_dropout' is false, and draws would not be those of a run alone"
    if recipe.torch_dtype == "float16":
        return "'torch_dtype' is float16, whose loss scale is one for all"
    values = recipe.to_dict()
    for key, (allowed, reason) in NEEDED.items():
        if key in values and values[key] not in allowed:
            return f"'{key}' is {values[key]!r}: {reason}"
    return None


def common_part(recipe: Recipe) -> dict[str, Any]:
    """What recipes that train together have in common."""
    values = {key: value for key, value in recipe.to_dict().items() if key not in OWN | recipe.objective_args.keys()}
    return {**values, "the objective's layout": objective_class(recipe.objective).layout.value}


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """The keys in which two recipes differ that must agree."""
    one, two = common_part(recipe), common_part(other)
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
