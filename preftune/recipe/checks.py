"""What a recipe must fulfil beyond the types of its values: ranges, and keys that contradict each other.

Every message starts with the key it is about; the recipe puts the file in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from preftune.errors import RecipeError
from preftune.objectives.base import Baseline, Reads
from preftune.recipe.batch import check_batch
from preftune.recipe.ppo import check_ppo
from preftune.recipe.training import LIMITS
from preftune.types import Layout

if TYPE_CHECKING:
    from preftune.recipe.schema import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse values out of range and contradictions.

    Raises:
        RecipeError: with the keys, their values and the remedy.
    """
    _check_limits(recipe)
    if recipe.objective == "ppo":
        check_ppo(recipe)
    _check_lengths(recipe)
    _check_objective(recipe)
    _check_reference(recipe)
    _check_adapter(recipe)
    _check_precision(recipe)
    _check_checkpointing(recipe)
    _check_compiling(recipe)
    _check_device_map(recipe)
    _check_evaluation(recipe)
    _check_streaming(recipe)
    _check_watch(recipe)
    check_batch(recipe)


def _check_limits(recipe: Recipe) -> None:
    for key, (holds, expected) in LIMITS.items():
        value = recipe.training[key] if key in recipe.training else getattr(recipe, key, None)
        if value is not None and not holds(value):
            raise RecipeError(f"'{key}' must be {expected}, found {value!r}.")


def _check_lengths(recipe: Recipe) -> None:
    for key in ("model_name_or_path", "dataset"):
        if not getattr(recipe, key):
            raise RecipeError(f"'{key}' is empty. Give a path or a name.")
    longest, prompt = recipe.max_length, recipe.max_prompt_length
    if prompt is not None and prompt >= longest:
        raise RecipeError(
            f"'max_prompt_length' {prompt} leaves no room for a response in 'max_length' {longest}. "
            "Lower the one or raise the other."
        )


def _check_objective(recipe: Recipe) -> None:
    if recipe.objective == "sft" and recipe.sft_weight:
        raise RecipeError(
            f"'sft_weight' {recipe.sft_weight:g} adds to 'objective' sft what it already is. Leave sft_weight out."
        )
    objective = recipe.build_objective()
    if recipe.sft_weight and objective.layout == Layout.UNPAIRED:
        raise RecipeError(
            f"'sft_weight' {recipe.sft_weight:g} needs pairs or ranked responses; {recipe.objective} has neither."
        )
    if recipe.sft_weight and objective.reads == Reads.SCORES:
        raise RecipeError(
            f"'sft_weight' {recipe.sft_weight:g} needs log-probs; {recipe.objective} trains a value head."
        )
    if objective.reads != Reads.SCORES:
        _refuse_idle(recipe, ("value_head_format",), f"{recipe.objective} trains no value head")


def _check_reference(recipe: Recipe) -> None:
    if not recipe.build_objective().needs_reference:
        because = f"{recipe.objective} has no reference model"
        _refuse_idle(recipe, ("reference_model_name_or_path", "precompute_reference"), because)
    if recipe.reference_model_name_or_path is None:
        _refuse_idle(recipe, ("reference_model_revision",), "reference_model_name_or_path is not set")
    if not recipe.precompute_reference:
        _refuse_idle(recipe, ("reference_cache",), "precompute_reference is false")


def _refuse_idle(recipe: Recipe, keys: Iterable[str], because: str) -> None:
    """Refuse keys that were set and would do nothing."""
    defaults = {field.name: field.default for field in fields(recipe)}
    for key in keys:
        value = getattr(recipe, key)
        if value != defaults[key]:
            said = str(value).lower() if isinstance(value, bool) else repr(value)
            raise RecipeError(f"'{key}' {said} has no effect: {because}. Leave it out.")


_PISSA = re.compile(r"pissa_niter_\d+")
_LORA_KEYS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_modules_to_save",
    "use_rslora",
    "use_dora",
    "lora_init",
)


def _check_adapter(recipe: Recipe) -> None:
    if recipe.load_in_4bit and recipe.load_in_8bit:
        raise RecipeError("'load_in_4bit' and 'load_in_8bit' are both true. Keep one of them.")
    if (recipe.load_in_4bit or recipe.load_in_8bit) and not recipe.trains_adapter:
        key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
        raise RecipeError(f"'{key}' true needs an adapter: quantised weights cannot be trained. Set use_peft: true.")
    if (recipe.load_in_4bit or recipe.load_in_8bit) and recipe.build_objective().reads == Reads.SCORES:
        raise RecipeError("'objective' reward trains a value head over dense weights. Leave load_in_4bit/8bit out.")
    if recipe.freeze and recipe.trains_adapter:
        raise RecipeError("'freeze' is for full training: beside an adapter all is frozen. Leave one of them out.")
    if not recipe.load_in_4bit:
        _refuse_idle(recipe, ("bnb_4bit_quant_type",), "load_in_4bit is false")
    if recipe.adapter_name_or_path is not None:
        _refuse_idle(recipe, _LORA_KEYS, "adapter_name_or_path brings its own settings")
    elif not recipe.use_peft:
        _refuse_idle(recipe, _LORA_KEYS, "no adapter is trained (use_peft is false)")
    if recipe.lora_init not in (True, "gaussian", "pissa", "olora") and not _PISSA.fullmatch(str(recipe.lora_init)):
        raise RecipeError(
            f"'lora_init' must be true, gaussian, pissa, pissa_niter_N or olora, found {recipe.lora_init!r}."
        )


def _check_precision(recipe: Recipe) -> None:
    training = recipe.training
    if training.get("bf16") and training.get("fp16"):
        raise RecipeError("'bf16' and 'fp16' are both true. Keep one of them.")
    for key, other in (("bf16", "float16"), ("fp16", "bfloat16")):
        if training.get(key) and recipe.torch_dtype == other:
            raise RecipeError(f"'torch_dtype' {other} and '{key}' true disagree. Keep one of them.")
    if recipe.master_weights == "split" and recipe.torch_dtype not in ("bfloat16", "auto"):
        said = "null" if recipe.torch_dtype is None else recipe.torch_dtype
        raise RecipeError(
            f"'master_weights' split has no effect: only bfloat16 weights are halves of a float32 master, and "
            f"torch_dtype is {said}. Set torch_dtype: bfloat16, or leave it out."
        )
    if recipe.optimizer_state != "float32" and recipe.master_weights is False and recipe.torch_dtype == "bfloat16":
        raise RecipeError(
            f"'optimizer_state' {recipe.optimizer_state} needs a master of bfloat16 weights: rounded moments and "
            "rounded weights do not learn. Set master_weights: split."
        )


def _check_checkpointing(recipe: Recipe) -> None:
    if recipe.checkpoint_layers is None:
        return
    for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        given = recipe.training.get(key)
        if isinstance(given, dict) and "every_n_layers" in given:
            raise RecipeError(
                f"'{key}' every_n_layers and 'checkpoint_layers' both say which layers are checkpointed. Keep one."
            )


_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def _check_compiling(recipe: Recipe) -> None:
    """The engine that a launcher asks for is looked at when the run starts."""
    training = recipe.training
    if not any(training.get(key) for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")):
        return
    if training.get("torch_compile_mode") in _CUDA_GRAPHS:
        raise RecipeError(
            f"'torch_compile_mode' {training['torch_compile_mode']} records CUDA graphs of fixed shapes, and packed "
            "rows have none. Leave it out, or set max-autotune-no-cudagraphs."
        )
    for key in ("deepspeed", "fsdp"):
        if training.get(key):
            raise RecipeError(
                f"'torch_compile' true and '{key}' do not go together: the engine gathers and frees a layer's weights "
                "by hooks while it runs, and compiled layers were not held against plain ones there. Leave one out."
            )
    if recipe.load_in_4bit or recipe.load_in_8bit:
        key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
        raise RecipeError(
            f"'torch_compile' true is not for quantised weights, whose products are kernels of their own, and {key} is "
            "true. Leave one of them out."
        )


def _check_device_map(recipe: Recipe) -> None:
    """What the map says of the model is looked at when that is loaded."""
    given = recipe.device_map
    if given is None:
        return
    if isinstance(given, str) and given != "auto":
        raise RecipeError(f"'device_map' must be auto, or a map of module names to devices, found {given!r}.")
    if isinstance(given, dict) and not all(type(place) in (int, str) for place in given.values()):
        raise RecipeError("'device_map' must hold numbers of GPUs, or cpu: {model.layers.0: 0, ...}.")
    if given == {}:
        raise RecipeError("'device_map' is empty. Set it to auto, or leave it out.")
    training = recipe.training
    others = {
        "deepspeed": training.get("deepspeed"),
        "fsdp": training.get("fsdp"),
        "load_in_4bit": recipe.load_in_4bit,
        "load_in_8bit": recipe.load_in_8bit,
        **{key: training.get(key) for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")},
        "use_liger_kernel": training.get("use_liger_kernel"),
        "objective ppo": recipe.objective == "ppo",
    }
    for key, there in others.items():
        if there:
            raise RecipeError(
                f"'device_map' spreads the layers of dense weights that no engine holds, and does not go with {key}. "
                "Leave one of them out."
            )


def _check_evaluation(recipe: Recipe) -> None:
    if recipe.eval_dataset is not None and recipe.test_split_size is not None:
        raise RecipeError("'eval_dataset' and 'test_split_size' both say what is held out. Keep one of them.")
    training = recipe.training
    strategy = training.get("eval_strategy", "no")
    if not recipe.evaluates and (strategy != "no" or training.get("eval_on_start")):
        key, value = ("eval_strategy", strategy) if strategy != "no" else ("eval_on_start", "true")
        raise RecipeError(f"'{key}' {value} needs data. Set eval_dataset, or leave {key} out.")
    if training.get("load_best_model_at_end"):
        _check_best_model(strategy, training)


def _check_watch(recipe: Recipe) -> None:
    keys = ("watch_prompts", "watch_steps", "on_collapse")
    if recipe.objective == "ppo":
        _refuse_idle(recipe, ("watch", *keys), "ppo samples answers at every step and logs their length, score and kl")
        _refuse_idle(recipe, ("record_margins",), "ppo trains on no pairs")
    elif recipe.build_objective().reads == Reads.SCORES:
        _refuse_idle(recipe, ("watch", *keys), f"{recipe.objective} trains a value head, which gives no answers")
    elif not recipe.watch:
        _refuse_idle(recipe, keys, "watch is false")


_WHOLE_ONLY = ("test_split_size", "dedupe", "precompute_reference", "tokens_cache", "dataset_num_proc")


def _check_streaming(recipe: Recipe) -> None:
    """Refuse, beside a stream, what needs all rows at once."""
    if not recipe.streaming:
        _refuse_idle(recipe, ("streaming_buffer",), "streaming is false")
        return
    if recipe.training.get("max_steps", -1) < 1:
        raise RecipeError("'streaming' true needs max_steps: how long a stream is, is not known. Set max_steps: N.")
    defaults = {field.name: field.default for field in fields(recipe)}
    for key in _WHOLE_ONLY:
        value = getattr(recipe, key)
        if value != defaults[key]:
            said = str(value).lower() if isinstance(value, bool) else repr(value)
            raise RecipeError(f"'{key}' {said} takes all rows at once, and streaming is true. Leave one of them out.")
    if recipe.build_objective().baseline == Baseline.PROBES:
        raise RecipeError(
            f"'streaming' true is not for {recipe.objective}, which compares with responses to other prompts from all "
            "of the data. Leave it out, or take an objective for pairs."
        )
    workers = recipe.training.get("dataloader_num_workers", 0)
    if workers:
        raise RecipeError(
            f"'dataloader_num_workers' {workers}: a stream is read in the process that trains. Leave it out."
        )


def _check_best_model(strategy: object, training: dict[str, Any]) -> None:
    saves = training.get("save_strategy", "steps")
    if strategy == "no":
        raise RecipeError("'load_best_model_at_end' needs an evaluation to compare by. Set eval_dataset.")
    if saves not in ("best", strategy):
        raise RecipeError(
            f"'load_best_model_at_end' needs a checkpoint at every evaluation, but save_strategy is {saves} and "
            f"eval_strategy is {strategy}. Set save_strategy: {strategy}."
        )
