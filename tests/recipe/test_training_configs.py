"""Every file of training_configs/ resolves to the published values, key by key."""

import re
from pathlib import Path

import pytest
import yaml

from preftune.recipe import load_recipe, resolve_batch

FOLDER = Path(__file__).parents[2] / "training_configs"

# What all recipes of the SimPO repository have in common.
COMMON = {
    "torch_dtype": None,
    "dataset_num_proc": 12,
    "bf16": True,
    "do_eval": True,
    "eval_strategy": "steps",
    "eval_steps": 400,
    "checkpointing": True,
    "checkpointing_kwargs": {"use_reentrant": False},
    "hub_model_id": "simpo-exps",
    "log_level": "info",
    "logging_steps": 5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 16,
    "push_to_hub": False,
    "save_strategy": "steps",
    "save_steps": 1000000,
    "report_to": ["wandb"],
    "save_total_limit": 20,
    "seed": 42,
    "warmup_steps": 0.1,
    "max_length": 2048,
    "max_prompt_length": 1800,
    "tokenization": "preftune",
    "mixer_order": "random",
    "chat_template": None,
    "attn_implementation": "flash_attention_2",
}
ULTRAFEEDBACK = {
    "dataset": {"HuggingFaceH4/ultrafeedback_binarized": 1.0},
    "dataset_splits": ["train_prefs", "test_prefs"],
}


def princeton(name):
    return {"dataset": {f"princeton-nlp/{name}": 1.0}, "dataset_splits": ["train", "test"]}


# What a setting says of model and data.
SETTINGS = {
    "mistral-7b-base": {
        "model_name_or_path": "alignment-handbook/zephyr-7b-sft-full",
        **ULTRAFEEDBACK,
        "max_length": 1024,
        "max_prompt_length": 512,
    },
    "mistral-7b-instruct": {
        "model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        **princeton("mistral-instruct-ultrafeedback"),
    },
    "llama-3-8b-base": {"model_name_or_path": "princeton-nlp/Llama-3-Base-8B-SFT", **ULTRAFEEDBACK},
    "llama-3-8b-instruct": {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        **princeton("llama3-ultrafeedback"),
    },
    "llama-3-8b-instruct-v2": {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        **princeton("llama3-ultrafeedback-armorm"),
    },
    "gemma-2-9b-it": {
        "model_name_or_path": "google/gemma-2-9b-it",
        **princeton("gemma2-ultrafeedback-armorm"),
        "attn_implementation": "eager",
        "chat_template": "gemma",
    },
}

# setting -> (beta, gamma_beta_ratio, learning_rate) of SimPO, learning_rate of DPO at beta 0.01
HYPERPARAMETERS = {
    "mistral-7b-base": ((2.0, 0.8, 3e-7), 5e-7),
    "mistral-7b-instruct": ((2.5, 0.1, 5e-7), 5e-7),
    "llama-3-8b-base": ((2.0, 0.5, 6e-7), 5e-7),
    "llama-3-8b-instruct": ((2.5, 0.55, 1e-6), 7e-7),
    "llama-3-8b-instruct-v2": ((10.0, 0.3, 1e-6), 3e-7),
    "gemma-2-9b-it": ((10.0, 0.5, 8e-7), 5e-7),
}

BASELINES = {
    "rrhf": {"objective": "rrhf", "sft_weight": 1.0, "sft_normalization": "sum"},
    "slic-hf": {"objective": "slic_hf", "delta": 1.0, "sft_weight": 0.1, "sft_normalization": "sum"},
    "ipo": {"objective": "ipo", "tau": 0.1},
    "cpo": {"objective": "cpo", "beta": 0.1, "sft_weight": 1.0, "sft_normalization": "sum"},
    "kto": {"objective": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "orpo": {"objective": "orpo", "beta": 0.1},
    "rdpo": {"objective": "rdpo", "beta": 0.1, "alpha": 0.05},
}
GRIDS = {  # what the comment of a baseline must name
    "dpo": "beta 0.01, 0.05, 0.1",
    "rrhf": "lambda (sft_weight) 0.1, 0.5, 1, 10",
    "slic-hf": "lambda (sft_weight) 0.1, 0.5, 1, 10; delta 0.5, 1, 2, 10",
    "ipo": "tau 0.01, 0.1, 0.5, 1.0",
    "cpo": "beta 0.01, 0.05, 0.1; lambda (sft_weight) 1.0",
    "kto": "beta 0.01, 0.05, 0.1",
    "orpo": "lambda (beta) 0.1, 0.5, 1, 2",
    "rdpo": "alpha 0.05, 0.1, 0.5, 1; beta 0.01, 0.05, 0.1",
}


def file_of(setting, method):
    return f"{setting[:-3]}-{method}-v2" if setting.endswith("-v2") else f"{setting}-{method}"


def published():
    """File name -> the values that it must resolve to."""
    files = {}
    for setting, ((beta, ratio, rate), dpo_rate) in HYPERPARAMETERS.items():
        simpo = {"objective": "simpo", "beta": beta, "gamma_beta_ratio": ratio, "learning_rate": rate}
        files[file_of(setting, "simpo")] = {**COMMON, **SETTINGS[setting], **simpo}
        dpo = {"objective": "dpo", "beta": 0.01, "learning_rate": dpo_rate}
        files[file_of(setting, "dpo")] = {**COMMON, **SETTINGS[setting], **dpo}
    for setting in ("mistral-7b-base", "llama-3-8b-base", "llama-3-8b-instruct", "llama-3-8b-instruct-v2"):
        for method, own in BASELINES.items():
            files[file_of(setting, method)] = {**COMMON, **SETTINGS[setting], **own, "learning_rate": 5e-7}
    for name, values in files.items():
        files[name] = {**values, "output_dir": f"outputs/{name}", "run_name": name}
    files["llama-3-8b-instruct-cpo-simpo"] = {
        **COMMON,
        **SETTINGS["llama-3-8b-instruct"],
        "attn_implementation": None,
        "objective": "simpo",
        "beta": 10.0,
        "gamma_beta_ratio": 0.54,
        "sft_weight": 0.05,
        "learning_rate": 1e-6,
        "gradient_accumulation_steps": 8,
        "hub_model_id": "cpo-simpo-exps",
        "report_to": ["none"],
        "output_dir": "outputs/llama-3-8b-instruct-cpo-simpo",
        "run_name": "llama-3-8b-instruct-cpo-simpo",
    }
    return files | OTHERS


OTHERS = {
    "llama-3-8b-base-sft": {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B",
        "model_revision": "main",
        "torch_dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "chat_template": "llama3",
        "dataset": {"HuggingFaceH4/ultrachat_200k": 1.0},
        "dataset_splits": ["train_sft", "test_sft"],
        "dataset_num_proc": 12,
        "objective": "sft",
        "bf16": True,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 200,
        "gradient_accumulation_steps": 4,
        "checkpointing": True,
        "checkpointing_kwargs": {"use_reentrant": False},
        "hub_model_id": "zephyr-7b-sft-full",
        "hub_strategy": "every_save",
        "learning_rate": 2e-5,
        "log_level": "info",
        "logging_steps": 5,
        "logging_strategy": "steps",
        "lr_scheduler_type": "cosine",
        "max_length": 2048,
        "max_steps": -1,
        "num_train_epochs": 1,
        "output_dir": "outputs/llama-3-8b-sft",
        "run_name": "llama-3-8b-sft",
        "per_device_eval_batch_size": 8,
        "per_device_train_batch_size": 8,
        "push_to_hub": False,
        "remove_unused_columns": True,
        "report_to": ["wandb"],
        "save_strategy": "steps",
        "save_steps": 1000000,
        "save_total_limit": 1,
        "seed": 42,
        "warmup_steps": 0.1,
    },
    "howto-mistral-7b-base": {
        "model_name_or_path": "mistralai/Mistral-7B-v0.1",
        "torch_dtype": "bfloat16",
        **ULTRAFEEDBACK,
        "objective": "simpo",
        "beta": 2.0,
        "gamma_beta_ratio": 0.5,
        "loss_type": "sigmoid",
        "sft_weight": 0.0,
        "learning_rate": 5e-7,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "output_dir": "./outputs/mistral-7b-simpo",
    },
    "howto-llama-3-8b-instruct": {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "dataset": {"argilla/ultrafeedback-binarized-preferences-cleaned": 1.0},
        "objective": "simpo",
        "beta": 2.5,
        "gamma_beta_ratio": 0.5,
        "learning_rate": 5e-7,
        "sft_weight": 0.1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "output_dir": "./outputs/llama3-8b-simpo",
    },
    "howto-deepseek-math-7b": {
        "model_name_or_path": "deepseek-ai/deepseek-math-7b-base",
        "dataset": {"argilla/distilabel-math-preference-dpo": 1.0},
        "objective": "simpo",
        "beta": 5.0,
        "gamma_beta_ratio": 0.7,
        "learning_rate": 3e-7,
        "sft_weight": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "output_dir": "runs/howto-deepseek-math-7b",
    },
}
PUBLISHED = published()


def resolved(recipe):
    """All keys flat, the two that transformers renames under one name."""
    flat = recipe.to_dict()
    for key in ("checkpointing", "checkpointing_kwargs"):
        flat[key] = flat.get(f"activation_{key}", flat.get(f"gradient_{key}"))
    return flat


def comment_of(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("")])


def test_every_file_has_its_row_and_every_row_its_file():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {*PUBLISHED, "demo-simpo"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_resolves_to_the_published_values(name):
    found = resolved(load_recipe(FOLDER / f"{name}.yaml"))
    wanted = PUBLISHED[name]
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("howto")])
def test_no_key_of_a_file_is_without_its_value_in_the_table(name):
    known = {
        "dataset_mixer": "dataset",
        "evaluation_strategy": "eval_strategy",
        "preprocessing_num_workers": "dataset_num_proc",
        "gradient_checkpointing": "checkpointing",
        "gradient_checkpointing_kwargs": "checkpointing_kwargs",
        "warmup_ratio": "warmup_steps",
        "max_seq_length": "max_length",
        "simpo_gamma": "gamma_beta_ratio",
        "cpo_alpha": "sft_weight",
        "loss_type": "objective",
        "use_flash_attention_2": "attn_implementation",
    }
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert {known.get(key, key) for key in written} - {"overwrite_output_dir"} <= {*PUBLISHED[name]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_comment_on_top_says_what_hardware_and_how_to_be_exact(name):
    comment = comment_of(name)
    assert re.search("H100|A100|processes", comment)
    assert "tokenization=princeton mixer_order=head" in comment
    assert f"training_configs/{name}.yaml" in comment
    method = next((method for method in GRIDS if re.search(rf"-{method}(-v2)?$", name)), None)
    if method is not None:
        assert f"Search grid: {GRIDS[method]}" in comment


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_two_keys_that_make_it_exact_are_taken(name):
    recipe = load_recipe(FOLDER / f"{name}.yaml", ["tokenization=princeton", "mixer_order=head"])
    assert (recipe.tokenization, recipe.mixer_order) == ("princeton", "head")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith(("simpo", "simpo-v2"))])
def test_the_published_batch_is_128_on_the_published_processes(name):
    processes = 8 if "cpo" in name else 4
    assert resolve_batch(load_recipe(FOLDER / f"{name}.yaml"), processes).total == 128


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_total_batch_size_holds_the_published_batch_on_any_number_of_devices(processes):
    recipe = load_recipe(FOLDER / "mistral-7b-base-simpo.yaml", ["total_batch_size=128"])
    assert resolve_batch(recipe, processes) == (2, 64 // processes, processes)
