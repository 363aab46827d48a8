"""Flags of the published rlhf commands that have no counterpart here, each with the reason.

NO_EFFECT  accepted, and said to be without effect
NOT_HERE   accepted where the value asks for nothing, else refused
"""

from __future__ import annotations

NO_EFFECT: dict[str, str] = {
    "check_model_is_latest": "a model folder is read as it is, and no hub is asked about it",
    "check_model": "a model folder is read as it is, and no hub is asked about it",
    "add_output_dir_suffix": "output_dir is used as it is; checkpoints of an earlier run in it are set aside",
    "add_version": "output_dir is used as it is; checkpoints of an earlier run in it are set aside",
    "lazy_tokenize": "rows are encoded before training; tokens_cache keeps them",
    "packing": "rows are always packed",
    "padding_free": "rows are always packed",
    "test_oom_error": "a step is cut by tokens (micro_batch_tokens), so the longest row does not decide",
    "tuner_backend": "adapters are PEFT's",
    "lora_dtype": "adapters are float32",
    "ignore_args_error": "every flag is checked",
    "use_hf": "names are looked up on one hub; MS:: marks those of ModelScope",
    "acc_strategy": "accuracy is that of pairs",
    "bnb_4bit_use_double_quant": "scales are always quantised too",
    **dict.fromkeys(
        ("top_k", "top_p", "do_sample", "repetition_penalty"),
        "only ppo generates while training, and samples from the whole distribution, by its temperature",
    ),
    "ddp_find_unused_parameters": "all that is trained takes part in every step",
    "save_safetensors": "weights are always saved as safetensors",
    "overwrite_output_dir": "checkpoints of an earlier run are set aside",
}

_SAMPLE = "write the number behind the name: --dataset NAME#500"
ADAPTER_REASON = "adapters are LoRA; use_rslora, use_dora and init_lora_weights are its variants"

# Flags of ppo that say nothing of other methods.
GENERATION = ("response_length", "temperature")
NOT_GENERATED = "nothing is generated while training"

# Name: (the values that ask for nothing, why any other is refused).
NOT_HERE: dict[str, tuple[tuple[object, ...], str]] = {
    "device_max_memory": ((None, []), "layers are spread by their bytes; --device_map_config names a GPU for each"),
    "sequence_parallel_size": ((1,), "a sequence is not split over GPUs"),
    "resume_only_model": ((False,), "to start from its weights, name its folder with --model_id_or_path or --adapters"),
    "train_dataset_sample": ((-1, None), _SAMPLE),
    "val_dataset_sample": ((-1, None), "write the number behind the name: --val_dataset NAME#500"),
    "train_dataset_mix_ratio": ((0, None), "weights of data sets are written in a recipe (dataset: {a: 0.5, b: 1.0})"),
    "self_cognition_sample": ((0,), "no such rows are shipped; name a file with --dataset"),
    "custom_register_path": ((None, []), "no code is run for data; describe it with --custom_dataset_info"),
    "custom_train_dataset_path": ((None, []), "name the file with --dataset"),
    "custom_val_dataset_path": ((None, []), "name the file with --val_dataset"),
    "target_regex": ((None,), "name the modules with --lora_target_modules"),
    "lora_bias_trainable": (("none",), "biases stay as they are; train modules whole with --lora_modules_to_save"),
    "lora_lr_ratio": ((None,), "A and B have one learning rate"),
    "lorap_lr_ratio": ((None,), "A and B have one learning rate"),
    "freeze_parameters_ratio": ((0,), "name the parts with --freeze_parameters (embeddings, layers.0-7)"),
    "additional_trainable_parameters": ((None, []), "name what is frozen with --freeze_parameters"),
    "trainable_parameters": ((None, []), "name what is frozen with --freeze_parameters"),
    "bnb_4bit_compute_dtype": (("AUTO", "auto", None), "it is --dtype"),
    "bnb_4bit_comp_dtype": (("AUTO", "auto", None), "it is --dtype"),
    "bnb_4bit_quant_storage": ((None,), "storage is that of bitsandbytes"),
    "use_galore": ((False,), "name an optimizer with --optim"),
    "use_loss_scale": ((False,), "all tokens of a response weigh the same"),
    "loss_scale": (("default", "last_round"), "all tokens of a response weigh the same"),
    "loss_scale_config_path": ((None,), "all tokens of a response weigh the same"),
    "rope_scaling": ((None,), "set it in the model's config.json"),
    "predict_with_generate": ((False,), "nothing is generated while training; use preftune chat"),
    "model_kwargs": ((None,), "write recipe keys as flags instead"),
    "rescale_image": ((-1, None), "models are text models"),
    "model_author": ((None, []), "it is of the self-cognition rows, which are not shipped"),
    "model_name": ((None, []), "it is of the self-cognition rows; for the model itself write --model_id_or_path"),
}  # fmt: skip
# What people write from memory, and the flag that it is here.
MEANT: dict[str, str] = {
    **dict.fromkeys(("lr", "peak_lr"), "learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "epoch"), "num_train_epochs"),
    **dict.fromkeys(("lambda", "orpo_lambda", "pref_beta", "kl_beta", "orpo_alpha"), "beta"),
    **dict.fromkeys(("grad_accum", "gradient_accumulation", "accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("use_lora", "use_peft_lora", "finetuning_type", "lora", "full"), "sft_type"),
    **dict.fromkeys(("precision", "mixed_precision"), "dtype"),
    **dict.fromkeys(("max_len", "max_seq_len", "cutoff_len", "model_max_length"), "max_length"),
    **dict.fromkeys(("data", "train_file", "data_path", "train_dataset"), "dataset"),
    **dict.fromkeys(("eval_data", "valid_dataset", "validation_dataset"), "val_dataset"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "lr_scheduler_type"),
    **dict.fromkeys(("method", "algorithm", "algo", "stage", "pref_loss"), "rlhf_type"),
    **dict.fromkeys(("grad_checkpoint", "activation_recompute"), "gradient_checkpointing"),
}
OTHER_ADAPTERS = ("longlora", "adalora", "ia3", "llamapro", "adapter", "vera", "boft", "fourierft", "reft")
