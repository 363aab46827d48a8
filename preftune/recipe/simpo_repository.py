"""Files of the SimPO repository (princeton-nlp/SimPO, its alignment-handbook, CPO_SIMPO), which say things differently.

Comes in: a layer as it was written. Goes out: the same layer in keys that a recipe knows, and, for its launcher
`scripts/run_simpo.py`, what the repository fills in where a file is silent. Each change is a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import RecipeError
from preftune.recipe.follow import HELD_OUT, asks_for_evaluation, has_test_split, is_local
from preftune.recipe.layers import Given, Layer, read_file, read_overrides

log = logging.getLogger(__name__)

# Keys of its configuration classes, transformers' of that time among them, that have nothing to do here; the reason.
# Those that TRL has too are in `trl.py`.
WITHOUT_EFFECT: dict[str, str] = {
    "base_model_revision": "the repository does not read it either; model_revision is the one that counts",
    "model_code_revision": "the repository does not read it either; model_revision is the one that counts",
    "text_column": "the repository does not read it either; columns says what a column is",
    "truncation_side": "it has none in the repository either; truncation says which end of a prompt is kept",
    "tpu_metrics_debug": "transformers 5 no longer has it",
    "use_legacy_prediction_loop": "transformers 5 no longer has it",
    "include_inputs_for_metrics": "transformers 5 no longer has it",
    "mp_parameters": "transformers 5 no longer has it",
    "push_to_hub_organization": "transformers 5 no longer has it; hub_model_id names the organisation too",
    "use_bnb_nested_quant": "the scales of 4-bit weights are always quantised too",
}

# Key: (what may be said, why nothing else may).
ONLY: dict[str, tuple[tuple[object, ...], str]] = {
    "auto_insert_empty_system_msg": ((True,), "tokenization: princeton puts it in, as published; ours never does"),
    "fsdp_min_num_params": ((0,), "transformers 5 has it as fsdp_config: {min_num_params: ...}"),
    "fsdp_transformer_layer_cls_to_wrap": ((None,), "transformers 5 has it in fsdp_config"),
    "bnb_4bit_quant_storage": (("uint8",), "quantised weights are stored as uint8"),
}

_LISTS = ("dataset_splits", "dataset_configs", "lora_target_modules", "lora_modules_to_save", "report_to")
_RATIOS = ("gamma_beta_ratio", "simpo_gamma", "gamma")
_LENGTHS = ("max_length", "max_seq_length")
_OBJECTIVES = ("objective", "loss", "rlhf_type")
_DATA = ("dataset", "dataset_mixer")
_SCHEDULE = {  # transformers' default, which the repository leaves in force: not taken over
    "learning_rate": "5e-5",
    "num_train_epochs": "3",
    "lr_scheduler_type": "linear",
    "warmup_ratio": "0",
}

# A switch -> the key and the value that say the same today.
SWITCHES: dict[str, tuple[str, str]] = {
    "use_flash_attention_2": ("attn_implementation", "flash_attention_2"),
    "adafactor": ("optim", "adafactor"),
}
KEYS = (*WITHOUT_EFFECT, *ONLY, *SWITCHES)


def to_our_keys(layer: Layer) -> Layer:
    """The layer without what only that repository knows.

    Raises:
        RecipeError: a key asks for something that is not done here.
    """
    loose = layer.keys() - _with_mixer(layer).keys()
    if loose:
        place = layer["dataset_mixer"].place
        log.info("%s: %s is read as indented below 'dataset_mixer'.", place, ", ".join(sorted(loose)))
    layer = _with_mixer(layer)
    for key, (allowed, reason) in ONLY.items():
        given = layer.pop(key, None)
        if given is not None and not any(given.value is value or given.value == value for value in allowed):
            raise RecipeError(f"{given.place}: '{key}' {_word(given.value)} is not supported: {reason}. Leave it out.")
    for key, reason in WITHOUT_EFFECT.items():
        given = layer.pop(key, None)
        if given is not None and given.value is not None:
            log.info("%s: '%s' has no effect: %s.", given.place, key, reason)
    return _with_objective(_with_switches(_with_workers(layer)))


def _with_mixer(layer: Layer) -> Layer:
    """A `dataset_mixer` whose entries lost their indentation on a web page: `owner/name: 1.0` at the left margin."""
    mixer = layer.get("dataset_mixer")
    loose = {key: given for key, given in layer.items() if "/" in key and isinstance(given.value, int | float)}
    if mixer is None or mixer.value is not None or not loose:
        return dict(layer)
    kept = {key: given for key, given in layer.items() if key not in loose}
    return {**kept, "dataset_mixer": mixer._replace(value={key: given.value for key, given in loose.items()})}


def _with_workers(layer: Layer) -> Layer:
    """There, one number is for rendering and one for encoding; here both are one pass, which takes the second."""
    if "dataset_num_proc" in layer and "preprocessing_num_workers" in layer:
        given = layer.pop("preprocessing_num_workers")
        log.info("%s: 'preprocessing_num_workers' has no effect: dataset_num_proc is given.", given.place)
    return layer


def _with_switches(layer: Layer) -> Layer:
    for switch, (key, value) in SWITCHES.items():
        given = layer.pop(switch, None)
        if given is None or given.value is None or str(given.value).lower() == "false":
            continue
        if str(given.value).lower() != "true":
            raise RecipeError(f"{given.place}: '{switch}' must be true or false, found {given.value!r}.")
        if key not in layer:
            log.info("%s: '%s' true is read as '%s' %s.", given.place, switch, key, value)
            layer[key] = Given(value, given.place)
    return layer


def _with_objective(layer: Layer) -> Layer:
    """CPO_SIMPO's trainer writes the objective as a kind of loss; beside `objective: cpo` that is `trl.fold_loss`."""
    given = layer.get("loss_type")
    if given is None or given.value != "simpo":
        return layer
    named = {str(layer[key].value).lower() for key in _OBJECTIVES if key in layer}
    if not named <= {"simpo"}:
        return layer
    kept = {key: value for key, value in layer.items() if key not in ("loss_type", *_OBJECTIVES)}
    log.info("%s: 'loss_type' simpo is read as 'objective' simpo.", given.place)
    return {**kept, "objective": Given("simpo", given.place)}


def _word(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- the launcher: how it is called, and what it fills in


def to_overrides(words: Sequence[str]) -> list[str]:
    """`--key value` as `--key=value`, and comma lists as lists: `dataset_splits=train,test`."""
    joined: list[str] = []
    for word in words:
        last = joined[-1] if joined else ""
        waits = last.startswith("--") and "=" not in last
        joined[-1:] = [f"{last}={word}"] if waits and not word.startswith("--") else [*joined[-1:], word]
    return [_with_list(word) for word in joined]


def _with_list(word: str) -> str:
    key, equals, text = word.partition("=")
    if not equals or "," not in text or text.startswith("[") or key.removeprefix("--") not in _LISTS:
        return word
    return f"{key}=[{text}]"


def filled_in(path: Path | None, words: Sequence[str]) -> list[str]:
    """`key=value` for what the repository fills in and we would not, where neither file nor command line says it.

    Its learning rate (5e-5), epochs (3) and schedule (linear, no warm-up) are transformers' own and no published run
    used them; the log says that ours stay in force.

    Raises:
        RecipeError: the file or a word cannot be read.
    """
    file = {} if path is None else _said(_with_mixer(read_file(path)))
    last = _said(read_overrides(words))
    values = {**file, **last}
    filled = {**_objective_defaults(values), **_template(values), **_evaluation(file, last)}
    for key, (value, reason) in filled.items():
        log.info("'%s' is not given: %s %s.", key, value, reason)
    _say_schedule(values)
    return [f"{key}={value}" for key, (value, _) in filled.items()]


Filled = dict[str, tuple[str, str]]  # key -> (value, why)


def _said(layer: Layer) -> dict[str, Any]:
    return {key: given.value for key, given in layer.items() if given.value is not None}


def _objective_defaults(values: Mapping[str, Any]) -> Filled:
    if any(str(values[key]).lower() != "simpo" for key in _OBJECTIVES if key in values):
        return {}
    filled: Filled = {}
    if not values.keys() & {*_RATIOS}:
        filled["gamma_beta_ratio"] = "0.25", "is the default of the SimPO repository (preftune's own is 0.5)"
    length = next((values[key] for key in _LENGTHS if key in values), None)
    if length is None:
        filled["max_length"] = "512", "is the default of the SimPO repository (preftune's own is 1024)"
    if "max_prompt_length" not in values and (length is None or (str(length).isdigit() and int(length) > 128)):
        filled["max_prompt_length"] = "128", "is the default of the SimPO repository (preftune's own is no limit)"
    return filled


def _template(values: Mapping[str, Any]) -> Filled:
    """The repository renders each model with `mistral` in its path by a template of its own."""
    exact = values.get("tokenization") == "princeton" and "chat_template" not in values
    if not exact or "mistral" not in str(values.get("model_name_or_path", "")).lower():
        return {}
    return {"chat_template": ("mistral-simpo", "is what the SimPO repository takes for paths with 'mistral' in them")}


def _evaluation(file: Mapping[str, Any], last: Mapping[str, Any]) -> Filled:
    """There, every run has the splits [train, test]."""
    values = {**file, **last}
    data = next((layer[key] for layer in (last, file) for key in _DATA if key in layer), None)
    named = values.keys() & {"dataset_splits", *HELD_OUT}
    if data is None or named or not asks_for_evaluation(values):
        return {}
    if not is_local(data) or has_test_split(data):
        return {"dataset_splits": ("[train, test]", "are the splits of the SimPO repository")}
    return {}


def _say_schedule(values: Mapping[str, Any]) -> None:
    said = {*values, *(["warmup_ratio"] if "warmup_steps" in values else [])}
    silent = [key for key in _SCHEDULE if key not in said]
    if silent:
        theirs = ", ".join(f"{key} {_SCHEDULE[key]}" for key in silent)
        log.info(
            "Left out, so as in the published runs and not as in transformers (%s): %s.", theirs, ", ".join(silent)
        )
