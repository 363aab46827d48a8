"""The flags of `preftune rlhf` and `preftune sft`: those of the published rlhf commands (ms-swift 2.5), as one table.

A flag has a name, what it sets in a recipe, its documented default, other names (of later releases), and a help line.
Those that do nothing here, or are refused, are in `preftune.recipe.unsupported`.

Every recipe key, objective key and field of `TrainingArguments` is a flag of that name too. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One flag.

    Args:
        name: without the dashes.
        help: a line.
        key: the recipe key that takes the value as it stands; None: `preftune.recipe.rlhf` makes keys of it.
        default: as documented; None: see the help.
        also: other names of the same.
        kind: bool (may stand alone), list (several values), or str for any one value.
        only: the rlhf_types that it is for; () = all.
    """

    name: str
    help: str
    key: str | None = None
    default: object = None
    also: tuple[str, ...] = ()
    kind: type = str
    only: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)


METHODS = ("simpo", "dpo", "kto", "cpo", "orpo", "rm", "ppo")
_PPO = ("ppo",)

GROUPS: dict[str, tuple[Flag, ...]] = {
    "method": (
        Flag("rlhf_type", "simpo, dpo, kto, cpo, orpo, rm, ppo, or another objective's name", default="dpo"),
        Flag("beta", "reward scale; 2.0 for simpo, 0.1 for all others; orpo's lambda", key="beta"),
        Flag(
            "simpo_gamma",
            "SimPO's margin, absolute (= gamma_beta_ratio x beta)",
            key="simpo_gamma",
            default=1.0,
            only=("simpo", "alphapo"),
        ),
        Flag(
            "gamma",
            "PPO's discount of rewards, 1.0 by default; for simpo another name of --simpo_gamma",
            key="gamma",
            only=("ppo", "simpo", "alphapo"),
        ),
        Flag(
            "cpo_alpha",
            "weight of the NLL of chosen answers; 0 is the paper's SimPO",
            key="sft_weight",
            default=1.0,
            only=("cpo", "simpo"),
        ),
        Flag(
            "rpo_alpha",
            "weight of the NLL of chosen answers; 0 is the paper's DPO",
            key="sft_weight",
            default=1.0,
            only=("dpo",),
        ),
        Flag(
            "loss_type",
            "of dpo: sigmoid hinge ipo exo_pair nca_pair robust ...; of cpo: sigmoid hinge simpo",
            key="loss_type",
            kind=list,
        ),
        Flag("loss_weights", "a weight for each of several --loss_type", key="loss_weights", kind=list, only=("dpo",)),
        Flag("label_smoothing", "probability that a pair's labels are swapped", key="label_smoothing"),
        Flag("desirable_weight", "lambda_D of KTO", key="desirable_weight", default=1.0, only=("kto",)),
        Flag("undesirable_weight", "lambda_U of KTO", key="undesirable_weight", default=1.0, only=("kto",)),
        Flag(
            "ref_model_id_or_path",
            "the reference; by default the model as it is at the start",
            key="reference_model_name_or_path",
            also=("ref_model", "reference_model_name_or_path"),
        ),
        Flag("ref_model_type", "the reference, by a name of the catalogue"),
        Flag("ref_model_revision", "of a hub name", key="reference_model_revision"),
    ),
    "ppo": (
        Flag(
            "reward_model_id_or_path",
            "the trained reward model; the value model starts from it",
            key="reward_model_name_or_path",
            also=("reward_model", "reward_model_name_or_path"),
            only=_PPO,
        ),
        Flag("reward_model_type", "the reward model, by a name of the catalogue", only=_PPO),
        Flag("reward_model_revision", "of a hub name", key="reward_model_revision", only=_PPO),
        Flag("reward_function", "instead: module:function of (prompts, responses)", key="reward_function", only=_PPO),
        Flag("reward_endpoint", "instead: address of a judge, up to /v1", key="reward_endpoint", only=_PPO),
        Flag("reward_judge", "the judge's model there", key="reward_judge", only=_PPO),
        Flag("reward_template", "file with the question to the judge", key="reward_template", only=_PPO),
        Flag(
            "reward_key_from",
            "the environment variable with the key of the endpoint",
            key="reward_key_from",
            default="OPENAI_API_KEY",
            only=_PPO,
        ),
        Flag(
            "local_rollout_forward_batch_size",
            "sequences of a pass without gradient, in each process",
            key="local_rollout_forward_batch_size",
            default=64,
            only=_PPO,
        ),
        Flag("whiten_rewards", "rewards of standard deviation 1", "whiten_rewards", False, kind=bool, only=_PPO),
        Flag("kl_coef", "of the KL penalty on each token", key="kl_coef", default=0.05, only=_PPO),
        Flag("cliprange", "of the policy's ratio", key="cliprange", default=0.2, only=_PPO),
        Flag("vf_coef", "weight of the value loss", key="vf_coef", default=0.1, only=_PPO),
        Flag("cliprange_value", "of the value's change", key="cliprange_value", default=0.2, only=_PPO),
        Flag("lam", "lambda of GAE", key="lam", default=0.95, only=_PPO),
        Flag(
            "num_ppo_epochs",
            "passes over the answers of a rollout; --num_train_epochs are passes over the prompts",
            key="num_ppo_epochs",
            default=4,
            only=_PPO,
        ),
        Flag("num_mini_batches", "optimizer steps of such a pass", key="num_mini_batches", default=1, only=_PPO),
        Flag(
            "response_length",
            "tokens that are sampled at most",
            key="response_length",
            default=512,
            also=("max_new_tokens",),
            only=_PPO,
        ),
        Flag("temperature", "of sampling", key="temperature", default=0.7, only=_PPO),
        Flag("stop_token", "eos (the end of a turn), or a token's text", key="stop_token", default="eos", only=_PPO),
        Flag("missing_eos_penalty", "off the score of an answer without end", key="missing_eos_penalty", only=_PPO),
    ),
    "model": (
        Flag("model_type", "a name of the catalogue: gives the hub id, the template and LoRA's default modules"),
        Flag(
            "model_id_or_path",
            "a folder or a name on the hub",
            key="model_name_or_path",
            also=("model", "model_name_or_path"),
        ),
        Flag("model_revision", "branch, tag or commit on the hub", key="model_revision", also=("revision",)),
        Flag(
            "template_type",
            "chat template: AUTO (of the model_type), a name, or a file",
            default="AUTO",
            also=("template", "chat_template"),
        ),
        Flag(
            "system",
            'system text of rows that have none ("" in a row: it is to have none), or a .txt file with it',
            also=("system_prompt",),
        ),
        Flag(
            "dtype",
            "AUTO (bf16 where the GPU has it, else fp16; fp32 on CPU), bf16, fp16, fp32",
            default="AUTO",
            also=("torch_dtype",),
        ),
        Flag(
            "device_map",
            "layers over the GPUs of a process: auto, or JSON (a file) of module names and GPUs; auto by itself where "
            "CUDA_VISIBLE_DEVICES shows more GPUs than there are processes",
            also=("device_map_config",),
        ),
        Flag("use_flash_attn", "attention by flash-attn outside packed rows", kind=bool),
        Flag(
            "attn_impl",
            "attention of ordinary passes: sdpa, eager, flash_attention_2",
            key="attn_implementation",
            also=("attn_implementation",),
        ),
        Flag(
            "quantization_bit",
            "0, 4 or 8: hold the base model quantised under an adapter",
            default=0,
            also=("quant_bits",),
        ),
        Flag("quant_method", "bnb", default="bnb"),
        Flag("bnb_4bit_quant_type", "nf4 or fp4", key="bnb_4bit_quant_type"),
    ),
    "adapter": (
        Flag("sft_type", "lora, or full", default="lora", also=("train_type", "tuner_type")),
        Flag(
            "lora_target_modules",
            "ALL (every linear layer but the head), DEFAULT (query, key, value), EMBEDDING, or names",
            default="DEFAULT",
            also=("target_modules",),
            kind=list,
        ),
        Flag("lora_rank", "rank", key="lora_r", default=8, also=("lora_r",)),
        Flag("lora_alpha", "scale, over the rank", key="lora_alpha", default=32),
        Flag(
            "lora_dropout", "dropout of the adapter's input", key="lora_dropout", default=0.05, also=("lora_dropout_p",)
        ),
        Flag(
            "lora_modules_to_save",
            "modules that are trained whole beside the adapter",
            key="lora_modules_to_save",
            also=("modules_to_save",),
            kind=list,
        ),
        Flag("init_lora_weights", "true, gaussian, pissa, pissa_niter_N, olora", key="lora_init", also=("lora_init",)),
        Flag("use_rslora", "scale over the root of the rank", key="use_rslora", kind=bool),
        Flag("use_dora", "train magnitudes too", key="use_dora", kind=bool),
        Flag("adapters", "go on with this adapter", key="adapter_name_or_path", also=("adapter_name_or_path",)),
        Flag(
            "freeze_parameters", "full training: parts that stay as they are", key="freeze", also=("freeze",), kind=list
        ),
    ),
    "data": (
        Flag("dataset", "[HF::|MS::]name, file or folder, :subset, #rows; several", key="dataset", kind=list),
        Flag("val_dataset", "the same, for evaluation", key="eval_dataset", also=("eval_dataset",), kind=list),
        Flag(
            "dataset_test_ratio",
            "what is held out of --dataset; 0: nothing",
            default=0.01,
            also=("split_dataset_ratio", "test_split_size"),
        ),
        Flag("custom_dataset_info", "a JSON or YAML file with more named data sets", also=("dataset_catalog",)),
        Flag("max_length", "tokens of prompt and response", key="max_length", default=2048),
        Flag(
            "truncation_strategy",
            "of rows that are too long: delete, or truncation_left",
            default="delete",
            also=("truncation",),
        ),
        Flag(
            "streaming",
            "read files row by row while training, for data larger than memory; needs --max_steps, not for kto",
            key="streaming",
            default=False,
            kind=bool,
        ),
        Flag(
            "streaming_buffer",
            "groups of a stream that are shuffled among each other [4096]",
            key="streaming_buffer",
            also=("streaming_buffer_size", "shuffle_buffer_size"),
        ),
        Flag("strict", "true: a bad row stops the run; false: bad rows are left out and counted", kind=bool),
        Flag("preprocess_num_proc", "processes that encode", key="dataset_num_proc", also=("dataset_num_proc",)),
    ),
    "training": (
        Flag("output_dir", "output/MODEL-TYPE by default", key="output_dir"),
        Flag(
            "batch_size",
            "groups a device and pass",
            key="per_device_train_batch_size",
            default=1,
            also=("per_device_train_batch_size",),
        ),
        Flag(
            "eval_batch_size",
            "the same for evaluation; by default --batch_size",
            key="per_device_eval_batch_size",
            also=("per_device_eval_batch_size",),
        ),
        Flag(
            "gradient_accumulation_steps",
            "16 groups a step over all processes by default",
            key="gradient_accumulation_steps",
        ),
        Flag(
            "learning_rate",
            "1e-4 for adapters, 1e-5 for full; SimPO wants 3e-7 to 1e-6 in full training",
            key="learning_rate",
        ),
        Flag("num_train_epochs", "passes over the data", key="num_train_epochs", default=1),
        Flag("max_steps", "optimizer steps, instead of epochs", key="max_steps"),
        Flag("lr_scheduler_type", "schedule", key="lr_scheduler_type", default="cosine"),
        Flag("warmup_ratio", "share of steps that warm up", key="warmup_ratio", default=0.05),
        Flag("optim", "optimizer", key="optim", default="adamw_torch"),
        Flag("weight_decay", "of the optimizer", key="weight_decay", default=0.1),
        Flag("adam_beta1", "of the optimizer", key="adam_beta1", default=0.9),
        Flag("adam_beta2", "of the optimizer", key="adam_beta2", default=0.95),
        Flag("max_grad_norm", "gradients are clipped to it", key="max_grad_norm", default=1.0),
        Flag(
            "gradient_checkpointing",
            "recompute activations: less memory, more time",
            key="gradient_checkpointing",
            default=True,
            kind=bool,
        ),
        Flag(
            "use_liger_kernel",
            "Liger's kernels for norms, rotary embedding and feed-forward; needs a GPU and the extra liger",
            key="use_liger_kernel",
            kind=bool,
            also=("use_liger",),
        ),
        Flag("neftune_noise_alpha", "noise on embeddings", key="neftune_noise_alpha"),
        Flag("seed", "of data order and adapters", key="seed", default=42),
        Flag("data_seed", "of data order alone; by default --seed", key="data_seed", also=("dataset_seed",)),
        Flag("eval_steps", "50 for adapters, 200 for full", key="eval_steps"),
        Flag("save_steps", "as --eval_steps by default", key="save_steps"),
        Flag("save_total_limit", "checkpoints that stay: the last and the best", key="save_total_limit", default=2),
        Flag("save_only_model", "checkpoints without optimizer: no resuming", key="save_only_model", kind=bool),
        Flag(
            "resume_from_checkpoint",
            "a checkpoint's folder, or true for the last one",
            key="resume_from_checkpoint",
            kind=bool,
        ),
        Flag("logging_steps", "steps between log lines", key="logging_steps", default=5),
        Flag(
            "watch",
            "answer a few fixed prompts while training, and say when the model collapses [true]",
            key="watch",
            kind=bool,
        ),
        Flag("watch_prompts", "how many [16]", key="watch_prompts"),
        Flag("watch_steps", "steps between two looks [a tenth of the run, at least 10]", key="watch_steps"),
        Flag("on_collapse", "warn, stop, or rollback to the last healthy checkpoint [warn]", key="on_collapse"),
        Flag("report_to", "trackers; log.jsonl is always written", key="report_to", kind=list),
        Flag("push_to_hub", "upload the model", key="push_to_hub", kind=bool),
        Flag("hub_model_id", "where to", key="hub_model_id"),
        Flag("hub_strategy", "when", key="hub_strategy", also=("push_hub_strategy",)),
        Flag(
            "deepspeed",
            "default-zero2, default-zero3, zero2-offload, zero3-offload, a file, or JSON",
        ),
        Flag("dry_run", "print the resolved recipe and stop", default=False, kind=bool),
    ),
}
FLAGS: dict[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS.values() for name in flag.names}
