"""The names that other tools and older versions use for our keys, and the keys that make no sense here.

One table a kind: `ALIASES` (another name, the same meaning), `IGNORED` (retired, without effect), `REFUSED` (would
not do what it says), and two conversions: the absolute gamma, and the ratio of warm-up steps. Each use of one is a
line in the log.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from preftune.data.truncate import TRUNCATION_ALIASES
from preftune.errors import RecipeError
from preftune.recipe.layers import Given, Layer
from preftune.recipe.trl import TRL_ALIASES, TRL_IGNORED, TRL_REFUSED, unfold
from preftune.recipe.values import Mismatch, coerce

log = logging.getLogger(__name__)

ALIASES: dict[str, str] = {
    "loss": "objective",
    "rlhf_type": "objective",
    "cpo_alpha": "sft_weight",
    "rpo_alpha": "sft_weight",
    "pref_ftx": "sft_weight",
    "dtype": "torch_dtype",
    "dataset_mixer": "dataset",
    "preprocessing_num_workers": "dataset_num_proc",
    "ref_model": "reference_model_name_or_path",
    "ref_model_id_or_path": "reference_model_name_or_path",
    "ref_model_revision": "reference_model_revision",
    "precompute_ref_log_probs": "precompute_reference",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "init_lora_weights": "lora_init",
    "max_seq_length": "max_length",
    "reward_model": "reward_model_name_or_path",
    "reward_model_id_or_path": "reward_model_name_or_path",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    **TRL_ALIASES,
}

# Other spellings of an objective's name.
OBJECTIVES: dict[str, str] = {"rm": "reward", "slic": "slic_hf", "r_dpo": "rdpo", "ln_dpo": "dpo_norm"}

# Other names of one objective's own keys.
OBJECTIVE_ALIASES: dict[str, dict[str, str]] = {"ipo": {"beta": "tau"}, "orpo": {"lambda": "beta"}}

# Both names are in use, by release of transformers; the recipe takes the one that the installed release wants.
RENAMED_BY_TRANSFORMERS: dict[str, str] = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

GAMMAS: tuple[str, ...] = ("simpo_gamma", "gamma")  # absolute: gamma = gamma_beta_ratio * beta
WARMUP_RATIO = "warmup_ratio"  # transformers 5 writes it as warmup_steps below 1

DTYPES: dict[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# Retired in transformers 5, or always so here: accepted, and said to be without effect.
IGNORED: dict[str, str] = {
    "overwrite_output_dir": "transformers 5 no longer has it",
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "transformers 5 no longer has it; trackers take their folder from the environment",
    "include_tokens_per_second": "tokens per second are always logged",
    "half_precision_backend": "transformers 5 no longer has it",
    "fp16_backend": "transformers 5 no longer has it",
    "fp16_opt_level": "transformers 5 no longer has it",
    "past_index": "transformers 5 no longer has it",
    "jit_mode_eval": "transformers 5 no longer has it",
    "use_ipex": "transformers 5 no longer has it",
    "use_mps_device": "transformers 5 no longer has it",
    "tpu_num_cores": "transformers 5 no longer has it",
    "torchdynamo": "transformers 5 no longer has it",
    "ray_scope": "transformers 5 no longer has it",
    **TRL_IGNORED,
}

# Key: (the values that ask for nothing, why any other is refused).
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "auto_find_batch_size": ((False,), "a step is cut by tokens, so set micro_batch_tokens"),
    "label_smoothing_factor": ((0,), "it smooths a cross-entropy that is not computed here; simpo has label_smoothing"),
    "group_by_length": ((False,), "a step is always cut so that little is padded; leave it out"),
    "train_sampling_strategy": (("random",), "a step is always cut so that little is padded; leave it out"),
    "split_batches": ((False, None), "batches are planned for all processes at once; leave it out"),
    "dispatch_batches": ((False, None), "every process plans its own part; leave it out"),
    "ignore_data_skip": ((False,), "resuming jumps to its place without reading; leave it out"),
    "dataloader_drop_last": ((False,), "the last, smaller step counts its own pairs, so none is dropped; leave it out"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite stops the run; leave it out"),
    **TRL_REFUSED,
}


def rename(layer: Layer, training: dict[str, Any]) -> Layer:
    """The layer with our names; `training` holds the fields of the installed TrainingArguments.

    Raises:
        RecipeError: a key and its alias are both given and disagree.
    """
    renamed: Layer = {}
    origins: dict[str, str] = {}
    for key, given in unfold(layer).items():
        if key in IGNORED:
            log.info("%s: '%s' has no effect: %s.", given.place, key, IGNORED[key])
            continue
        name = _our_name(key, training)
        if given.value is None and name != key:  # `rpo_alpha: null` says that there is none
            continue
        value = _our_value(key, given)
        if name in renamed and renamed[name].value != value.value:
            raise _disagree(given.place, (origins[name], renamed[name].value), (key, given.value))
        if name != key:
            log.info("%s: '%s' is read as '%s'.", given.place, key, name)
        renamed[name], origins[name] = value, key
    return _fold_warmup(_fold_truncation(renamed))


def _our_name(key: str, training: dict[str, Any]) -> str:
    for old, new in RENAMED_BY_TRANSFORMERS.items():
        if key in (old, new):
            return new if new in training else old
    return ALIASES.get(key, key)


def _our_value(key: str, given: Given) -> Given:
    if key in ("torch_dtype", "dtype") and given.value is not None:
        name = str(given.value).removeprefix("torch.")
        return given._replace(value=DTYPES.get(name, name), text=None)
    if _our_name(key, {}) == "objective" and isinstance(given.value, str):
        name = given.value.lower().replace("-", "_")
        return given._replace(value=OBJECTIVES.get(name, name), text=None)
    if key == "report_to" and given.value is None:
        return given._replace(value="none")
    return given


def rename_own(layer: Layer, objective: str) -> Layer:
    """The layer with our names for the keys of `objective`: ipo's `beta` is tau, orpo's `lambda` is beta.

    Raises:
        RecipeError: a key and its alias are both given and disagree.
    """
    renamed = dict(layer)
    for key, name in OBJECTIVE_ALIASES.get(objective, {}).items():
        if key not in renamed:
            continue
        given = renamed.pop(key)
        if name in renamed and renamed[name].value != given.value:
            raise _disagree(given.place, (name, renamed[name].value), (key, given.value))
        log.info("%s: '%s' is read as '%s'.", given.place, key, name)
        renamed[name] = given
    mixture = renamed.get("mixture")
    if mixture is not None and isinstance(mixture.value, dict):
        parts = {part: _rename_part(str(part), keys) for part, keys in mixture.value.items()}
        renamed["mixture"] = mixture._replace(value=type(mixture.value)(parts))
    return renamed


def _rename_part(objective: str, keys: Any) -> Any:
    if not isinstance(keys, dict):
        return keys
    names = OBJECTIVE_ALIASES.get(objective, {})
    return {names.get(key, key): value for key, value in keys.items()}


def _disagree(place: str, first: tuple[str, Any], second: tuple[str, Any], because: str = "") -> RecipeError:
    (one, value), (other, other_value) = first, second
    return RecipeError(f"{place}: '{one}' {value} and '{other}' {other_value} disagree{because}. Keep one of them.")


def _fold_truncation(layer: Layer) -> Layer:
    """Other tools' keys for what to do with rows that are too long.

    Raises:
        RecipeError: a value is not one of theirs, or disagrees with `truncation`.
    """
    layer = dict(layer)
    for key, values in TRUNCATION_ALIASES.items():
        if key not in layer:
            continue
        given = layer.pop(key)
        if given.value not in values:
            raise RecipeError(f"{given.place}: '{key}' must be one of {', '.join(values)}, found {given.value!r}.")
        mode = values[given.value]
        if "truncation" in layer and layer["truncation"].value != mode:
            raise _disagree(given.place, ("truncation", layer["truncation"].value), (key, given.value))
        log.info("%s: '%s' %s is read as 'truncation' %s.", given.place, key, given.value, mode)
        layer["truncation"] = Given(mode, given.place)
    return layer


def _fold_warmup(layer: Layer) -> Layer:
    if WARMUP_RATIO not in layer:
        return layer
    layer = dict(layer)
    given = layer.pop(WARMUP_RATIO)
    ratio = _number(WARMUP_RATIO, given)
    if not 0 <= ratio < 1:
        raise RecipeError(
            f"{given.place}: 'warmup_ratio' must be at least 0 and below 1, found {given.value!r}. "
            "For a number of steps set warmup_steps."
        )
    steps = layer.get("warmup_steps")
    if steps is not None and ratio and _number("warmup_steps", steps) not in (0, ratio):
        raise _disagree(given.place, ("warmup_steps", steps.value), (WARMUP_RATIO, given.value))
    if steps is None or ratio:
        log.info("%s: 'warmup_ratio' %g is read as 'warmup_steps' %g.", given.place, ratio, ratio)
        layer["warmup_steps"] = Given(ratio, given.place)
    return layer


def override_gamma(file: Layer, overrides: Layer) -> Layer:
    """The file's layer without the gamma that the overrides replace under another name."""
    names = {"gamma_beta_ratio", *GAMMAS}
    if names & set(overrides):
        return {key: given for key, given in file.items() if key not in names}
    return file


def fold_gamma(layer: Layer, objective_keys: dict[str, Any]) -> Layer:
    """`simpo_gamma` or `gamma` (absolute) as `gamma_beta_ratio`, for objectives that have a ratio.

    Raises:
        RecipeError: more than one is given and they disagree.
    """
    given = {key: layer[key] for key in GAMMAS if key in layer}
    if not given or "gamma_beta_ratio" not in objective_keys:
        return layer
    beta = _number("beta", layer["beta"]) if "beta" in layer else objective_keys["beta"]
    folded = {key: value for key, value in layer.items() if key not in GAMMAS}
    if beta <= 0:  # refused with its own message when the objective is built
        return folded
    (first, gamma), *others = given.items()
    for key, other in others:
        if _number(key, other) != _number(first, gamma):
            raise _disagree(other.place, (first, gamma.value), (key, other.value))
    return _fold_one_gamma(folded, first, gamma, beta)


def _fold_one_gamma(layer: Layer, key: str, gamma: Given, beta: float) -> Layer:
    absolute = _number(key, gamma)
    ratio = absolute / beta
    known = layer.get("gamma_beta_ratio")
    if known is None:
        log.info("%s: '%s' %g is gamma_beta_ratio %g (beta %g).", gamma.place, key, absolute, ratio, beta)
        return {**layer, "gamma_beta_ratio": Given(ratio, gamma.place)}
    if not math.isclose(_number("gamma_beta_ratio", known), ratio, rel_tol=1e-9):
        because = f" ({absolute:g} / beta {beta:g} = {ratio:g})"
        raise _disagree(gamma.place, ("gamma_beta_ratio", known.value), (key, gamma.value), because)
    return layer


def refuse_senseless(layer: Layer) -> Layer:
    """The layer without the keys of `REFUSED`, which may only ask for nothing.

    Raises:
        RecipeError: one of them asks for something.
    """
    for key, (harmless, reason) in REFUSED.items():
        if key in layer and not _asks_for_nothing(layer[key].value, harmless):
            raise RecipeError(f"{layer[key].place}: '{key}' {_word(layer[key].value)} is not supported: {reason}.")
    accelerator = layer.get("accelerator_config")
    if accelerator is not None and isinstance(accelerator.value, dict):
        for key in ("split_batches", "dispatch_batches"):
            if accelerator.value.get(key):
                reason = REFUSED[key][1]
                raise RecipeError(f"{accelerator.place}: 'accelerator_config.{key}' true is not supported: {reason}.")
    return {key: given for key, given in layer.items() if key not in REFUSED}


def _asks_for_nothing(value: object, harmless: tuple[object, ...]) -> bool:
    return any(value == nothing and isinstance(value, bool) == isinstance(nothing, bool) for nothing in harmless)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(key: str, given: Given) -> float:
    try:
        return float(coerce(given.value, float))
    except Mismatch as mismatch:
        raise RecipeError(f"{given.place}: '{key}' must be {mismatch}, found {given.value!r}.") from None
