"""Each flag changes what is built, under each of its names."""

import json
import logging

import pytest

from preftune.errors import PreftuneError
from preftune.recipe.flags import BY_NAME, FLAGS, METHODS
from preftune.recipe.rlhf import build_recipe, headline, method_names, read_flags
from preftune.recipe.training import training_kinds
from preftune.recipe.unsupported import NO_EFFECT, NOT_HERE

CHECKPOINTING = next(k for k in ("activation_checkpointing", "gradient_checkpointing") if k in training_kinds())
BASE = {"rlhf_type": "simpo", "model_id_or_path": "m", "dataset": "a.jsonl"}
NLL = "sft_weight"

# flag: (words after it, other flags that it goes with, recipe key, its value)
CHANGES = {
    "rlhf_type": ("orpo", {}, "objective", "orpo"),
    "beta": ("3.5", {}, "beta", 3.5),
    "simpo_gamma": ("0.5", {}, "gamma_beta_ratio", 0.25),
    "cpo_alpha": ("0", {}, NLL, 0.0),
    "rpo_alpha": ("0.1", {"rlhf_type": "dpo"}, NLL, 0.1),
    "loss_type": ("hinge", {}, "loss_type", "hinge"),
    "loss_weights": (
        "0.8 0.2",
        {"rlhf_type": "dpo", "loss_type": "sigmoid bco_pair"},
        "mixture",
        {"dpo": {"weight": 0.8, "loss_type": "sigmoid", "beta": 0.1}, "bco_pair": {"weight": 0.2, "beta": 0.1}},
    ),
    "label_smoothing": ("0.1", {}, "label_smoothing", 0.1),
    "desirable_weight": ("1.3", {"rlhf_type": "kto"}, "desirable_weight", 1.3),
    "undesirable_weight": ("1.3", {"rlhf_type": "kto"}, "undesirable_weight", 1.3),
    "ref_model_id_or_path": ("r", {"rlhf_type": "dpo"}, "reference_model_name_or_path", "r"),
    "ref_model_type": ("qwen2-7b", {"rlhf_type": "dpo"}, "reference_model_name_or_path", "Qwen/Qwen2-7B"),
    "ref_model_revision": ("v2", {"rlhf_type": "dpo", "ref_model": "r"}, "reference_model_revision", "v2"),
    "model_type": ("gemma2-9b-instruct", {}, "chat_template", "gemma"),
    "model_id_or_path": ("other", {}, "model_name_or_path", "other"),
    "model_revision": ("v2", {}, "model_revision", "v2"),
    "template_type": ("zephyr", {}, "chat_template", "zephyr"),
    "system": ("Be brief.", {}, "system_prompt", "Be brief."),
    "dtype": ("bf16", {}, "torch_dtype", "bfloat16"),
    "device_map": ("auto", {}, "device_map", "auto"),
    "use_flash_attn": ("true", {}, "attn_implementation", "flash_attention_2"),
    "attn_impl": ("eager", {}, "attn_implementation", "eager"),
    "quantization_bit": ("4", {}, "load_in_4bit", True),
    "bnb_4bit_quant_type": ("fp4", {"quantization_bit": "4"}, "bnb_4bit_quant_type", "fp4"),
    "sft_type": ("full", {}, "use_peft", False),
    "lora_target_modules": ("q_proj up_proj", {}, "lora_target_modules", ["q_proj", "up_proj"]),
    "lora_rank": ("4", {}, "lora_r", 4),
    "lora_alpha": ("8", {}, "lora_alpha", 8),
    "lora_dropout": ("0.2", {}, "lora_dropout", 0.2),
    "lora_modules_to_save": ("lm_head", {}, "lora_modules_to_save", ["lm_head"]),
    "init_lora_weights": ("pissa", {}, "lora_init", "pissa"),
    "use_rslora": ("true", {}, "use_rslora", True),
    "use_dora": ("true", {}, "use_dora", True),
    "adapters": ("my-adapter", {}, "adapter_name_or_path", "my-adapter"),
    "freeze_parameters": ("embeddings layers.0-7", {"sft_type": "full"}, "freeze", ["embeddings", "layers.0-7"]),
    "dataset": ("b.jsonl#50 HF::c/d", {}, "dataset", ["b.jsonl#50", "HF::c/d"]),
    "val_dataset": ("b.jsonl", {}, "eval_dataset", ["b.jsonl"]),
    "dataset_test_ratio": ("0.2", {}, "test_split_size", 0.2),
    "max_length": ("512", {}, "max_length", 512),
    "truncation_strategy": ("truncation_left", {}, "truncation", "keep_end"),
    "streaming": ("true", {"max_steps": "3"}, "streaming", True),
    "streaming_buffer": ("64", {"streaming": "true", "max_steps": "3"}, "streaming_buffer", 64),
    "strict": ("false", {}, "on_bad_row", "skip"),
    "data_seed": ("7", {}, "data_seed", 7),
    "preprocess_num_proc": ("2", {}, "dataset_num_proc", 2),
    "output_dir": ("here", {}, "output_dir", "here"),
    "batch_size": ("4", {}, "per_device_train_batch_size", 4),
    "eval_batch_size": ("4", {}, "per_device_eval_batch_size", 4),
    "gradient_accumulation_steps": ("3", {}, "gradient_accumulation_steps", 3),
    "learning_rate": ("5e-7", {}, "learning_rate", 5e-7),
    "num_train_epochs": ("3", {}, "num_train_epochs", 3),
    "max_steps": ("30", {}, "max_steps", 30),
    "lr_scheduler_type": ("linear", {}, "lr_scheduler_type", "linear"),
    "warmup_ratio": ("0.1", {}, "warmup_steps", 0.1),
    "optim": ("sgd", {}, "optim", "sgd"),
    "watch": ("false", {}, "watch", False),
    "watch_prompts": ("8", {}, "watch_prompts", 8),
    "watch_steps": ("20", {}, "watch_steps", 20),
    "on_collapse": ("rollback", {}, "on_collapse", "rollback"),
    "weight_decay": ("0", {}, "weight_decay", 0),
    "adam_beta1": ("0.8", {}, "adam_beta1", 0.8),
    "adam_beta2": ("0.999", {}, "adam_beta2", 0.999),
    "max_grad_norm": ("0.5", {}, "max_grad_norm", 0.5),
    "gradient_checkpointing": ("false", {}, CHECKPOINTING, False),
    "use_liger_kernel": ("true", {}, "use_liger_kernel", True),
    "neftune_noise_alpha": ("5", {}, "neftune_noise_alpha", 5),
    "seed": ("7", {}, "seed", 7),
    "eval_steps": ("10", {}, "eval_steps", 10),
    "save_steps": ("10", {}, "save_steps", 10),
    "save_total_limit": ("5", {}, "save_total_limit", 5),
    "save_only_model": ("true", {}, "save_only_model", True),
    "resume_from_checkpoint": ("out/checkpoint-5", {}, "resume_from_checkpoint", "out/checkpoint-5"),
    "logging_steps": ("1", {}, "logging_steps", 1),
    "report_to": ("tensorboard wandb", {}, "report_to", ["tensorboard", "wandb"]),
    "push_to_hub": ("true", {}, "push_to_hub", True),
    "hub_model_id": ("me/it", {}, "hub_model_id", "me/it"),
    "hub_strategy": ("end", {}, "hub_strategy", "end"),
}
PPO = {"rlhf_type": "ppo", "reward_model": "r"}
JUDGED = {"rlhf_type": "ppo", "reward_endpoint": "http://a/v1", "reward_judge": "m"}
CHANGES |= {
    "gamma": ("0.9", PPO, "gamma", 0.9),
    "reward_model_id_or_path": ("other", PPO, "reward_model_name_or_path", "other"),
    "reward_model_type": (
        "qwen2-7b",
        {"rlhf_type": "ppo", "reward_model_type": "llama3-8b-instruct"},
        "reward_model_name_or_path",
        "Qwen/Qwen2-7B",
    ),
    "reward_model_revision": ("v2", PPO, "reward_model_revision", "v2"),
    "reward_endpoint": ("http://b/v1", JUDGED, "reward_endpoint", "http://b/v1"),
    "reward_judge": ("n", JUDGED, "reward_judge", "n"),
    "reward_template": ("t.txt", JUDGED, "reward_template", "t.txt"),
    "reward_key_from": ("MY_KEY", JUDGED, "reward_key_from", "MY_KEY"),
    "reward_function": ("a:b", {"rlhf_type": "ppo", "reward_function": "z:z"}, "reward_function", "a:b"),
    "local_rollout_forward_batch_size": ("8", PPO, "local_rollout_forward_batch_size", 8),
    "whiten_rewards": ("true", PPO, "whiten_rewards", True),
    "kl_coef": ("0.2", PPO, "kl_coef", 0.2),
    "cliprange": ("0.1", PPO, "cliprange", 0.1),
    "vf_coef": ("0.5", PPO, "vf_coef", 0.5),
    "cliprange_value": ("0.5", PPO, "cliprange_value", 0.5),
    "lam": ("0.9", PPO, "lam", 0.9),
    "num_ppo_epochs": ("2", PPO, "num_ppo_epochs", 2),
    "num_mini_batches": ("2", PPO, "num_mini_batches", 2),
    "response_length": ("100", PPO, "response_length", 100),
    "temperature": ("1.0", PPO, "temperature", 1.0),
    "stop_token": ("###", PPO, "stop_token", "###"),
    "missing_eos_penalty": ("1.0", PPO, "missing_eos_penalty", 1.0),
}
ELSEWHERE = {"dry_run", "quant_method", "custom_dataset_info", "deepspeed"}  # tested by themselves below


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def words_of(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", *words(name, value))]


def words(name, value):
    return [str(value)] if name in ("system", "system_prompt", "deepspeed") else str(value).split()


def recipe(*more, **flags):
    return build_recipe(read_flags([*words_of({**BASE, **flags}), *more]))


def test_the_cases_below_are_all_flags():
    assert {*CHANGES, *ELSEWHERE} == set(FLAGS)


@pytest.mark.parametrize("name", sorted(name for name, flag in BY_NAME.items() if flag.name in CHANGES))
def test_a_flag_changes_the_recipe_under_each_of_its_names(name):
    value, beside, key, expected = CHANGES[BY_NAME[name].name]
    flags = {k: v for k, v in {**BASE, **beside}.items() if BY_NAME[k].name != BY_NAME[name].name}
    before = build_recipe(read_flags(words_of({**BASE, **beside}))).to_dict()
    after = build_recipe(read_flags(words_of({**flags, name: value}))).to_dict()
    assert after[key] == expected
    assert before.get(key) != expected


@pytest.mark.parametrize("joined", ["--learning_rate=5e-7", "--learning-rate=5e-7"])
def test_a_flag_may_be_joined_to_its_value(joined):
    assert recipe(joined).training["learning_rate"] == 5e-7


def test_a_flag_that_is_true_or_false_may_stand_alone():
    assert recipe("--use_rslora").use_rslora is True
    assert recipe("--push_to_hub", "--seed", "3").training["push_to_hub"] is True


def test_gamma_is_the_discount_of_ppo_and_the_margin_of_simpo():
    assert recipe(**{**PPO, "gamma": 0.9}).objective_args["gamma"] == 0.9
    assert recipe(gamma=0.5).objective_args["gamma_beta_ratio"] == 0.25


def test_passes_over_prompts_and_over_a_rollout_are_two_settings():
    found = recipe(**PPO, num_train_epochs=3)
    assert (found.training["num_train_epochs"], found.objective_args["num_ppo_epochs"]) == (3, 4)
    found = recipe(**PPO, num_ppo_epochs=2)
    assert (found.training["num_train_epochs"], found.objective_args["num_ppo_epochs"]) == (1, 2)


def test_flags_of_sampling_say_nothing_where_nothing_is_sampled(caplog):
    with caplog.at_level(logging.INFO):
        found = recipe(temperature=0.3, max_new_tokens=100)
    assert found == recipe() and caplog.text.count("nothing is generated while training") == 2


def test_a_negative_number_is_a_value():
    assert recipe("--max_steps", "-1").training["max_steps"] == -1


def test_recipe_keys_and_training_arguments_are_flags_too():
    found = recipe(
        "--gamma_beta_ratio", "0.3", "--road", "padded", "--adam_epsilon", "1e-6", "--total_batch_size", "128"
    )
    assert (found.objective_args["gamma_beta_ratio"], found.road) == (0.3, "padded")
    assert (found.training["adam_epsilon"], found.total_batch_size) == (1e-6, 128)


@pytest.mark.parametrize(("processes", "batch", "steps"), [(1, 1, 16), (2, 1, 8), (3, 1, 6), (1, 4, 4), (8, 4, 1)])
def test_sixteen_groups_make_a_step_by_default(processes, batch, steps):
    found = build_recipe(read_flags(words_of({**BASE, "batch_size": batch})), processes)
    assert found.training["gradient_accumulation_steps"] == steps


def test_full_training_has_its_own_defaults():
    full, lora = recipe(sft_type="full"), recipe()
    assert (full.training["learning_rate"], lora.training["learning_rate"]) == (1e-5, 1e-4)
    assert (full.training["eval_steps"], lora.training["eval_steps"]) == (200, 50)
    assert (full.disable_dropout, lora.disable_dropout) == (True, False)


def test_save_steps_follow_eval_steps():
    assert recipe(eval_steps=7).training["save_steps"] == 7
    assert recipe(eval_steps=7, save_steps=9).training["save_steps"] == 9


def test_an_adapter_brings_its_own_settings():
    found = recipe(adapters="mine")
    assert found.trains_adapter and not found.use_peft and found.training["learning_rate"] == 1e-4


def test_without_a_test_ratio_nothing_is_held_out():
    found = recipe(dataset_test_ratio=0)
    assert not found.evaluates and "eval_strategy" not in found.training


def test_a_val_dataset_goes_before_the_test_ratio(caplog):
    with caplog.at_level(logging.INFO):
        found = recipe(val_dataset="b.jsonl", dataset_test_ratio=0.1)
    assert found.eval_dataset == ["b.jsonl"] and found.test_split_size is None
    assert "--dataset_test_ratio has no effect" in caplog.text


def test_the_default_modules_are_those_of_the_family():
    flags = {"model_type": "phi3-4b-4k-instruct", "model_id_or_path": "local"}
    assert recipe(**flags).lora_target_modules == ["qkv_proj"]
    assert recipe(**flags, lora_target_modules="all-linear").lora_target_modules == "ALL"
    assert recipe().lora_target_modules == "DEFAULT"
    assert recipe(**flags).model_name_or_path == "local"


def test_a_known_id_finds_its_family():
    found = recipe(model_id_or_path="qwen/qwen2-7b-instruct")
    assert (found.chat_template, found.system_prompt) == ("chatml", "You are a helpful assistant.")


def test_a_template_by_its_published_name():
    found = recipe(template_type="qwen2_5")
    assert found.chat_template == "qwen2.5" and found.system_prompt.startswith("You are Qwen")
    assert recipe(template_type="qwen", system="S").system_prompt == "S"


def test_a_system_text_may_be_a_file(tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.\n")
    assert recipe(system=str(tmp_path / "system.txt")).system_prompt == "Be brief."


@pytest.mark.parametrize(
    ("cuda", "bf16", "dtype"), [(False, False, "float32"), (True, True, "bfloat16"), (True, False, "float16")]
)
def test_auto_is_the_best_precision_of_the_device(monkeypatch, cuda, bf16, dtype):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    assert recipe(dtype="AUTO").torch_dtype == recipe().torch_dtype == dtype


def test_an_autocast_that_is_asked_for_goes_before_auto(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    found = recipe(fp16="true")
    assert (found.torch_dtype, found.training["fp16"]) == (None, True)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *[("default-zero2", 2), ("default-zero3", 3), ("zero2-offload", 2), ("zero3-offload", 3)],
        *[("zero2", 2), ("zero3", 3), ("zero2_offload", 2), ("zero3_offload", 3)],
    ],
)
def test_deepspeed_by_name(name, stage):
    zero = recipe(deepspeed=name).training["deepspeed"]["zero_optimization"]
    assert zero["stage"] == stage and ("offload_optimizer" in zero) == name.endswith("offload")


def test_deepspeed_by_file_and_as_json(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    assert recipe(deepspeed=tmp_path / "mine.json").training["deepspeed"] == str(tmp_path / "mine.json")
    assert recipe(deepspeed='{"zero_optimization": {"stage": 1}}').training["deepspeed"]["zero_optimization"] == {
        "stage": 1
    }


def test_custom_dataset_info_names_data_sets(tmp_path):
    from preftune.data import load_preferences

    (tmp_path / "pairs.jsonl").write_text('{"q": "a", "good": "b", "bad": "c"}\n')
    info = {
        "mine": {
            "dataset_path": "pairs.jsonl",
            "columns": {"q": "query", "good": "response", "bad": "rejected_response"},
            "tags": ["rlhf"],
        },
        "hub": {"hf_dataset_id": "a/b", "dataset_id": "c/d", "subsets": ["x"], "split": ["train_prefs", "test_prefs"]},
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    found = recipe(dataset="mine", custom_dataset_info=tmp_path / "info.json")
    assert found.dataset_catalog == str(tmp_path / "info.json")
    (example,) = load_preferences(found.dataset, catalog=found.dataset_catalog)
    assert example.responses == ("b", "c")


@pytest.mark.parametrize(
    ("loss_type", "objective", "more"),
    [
        ("hinge", "dpo", {"loss_type": "hinge"}),
        ("ipo", "ipo", {"tau": 0.1, "normalize": "length"}),
        ("aot", "aot", {"loss_type": "paired"}),
        ("aot_pair", "aot", {"loss_type": "unpaired"}),
        ("apo_zero", "apo_zero", {"beta": 0.1}),
        ("bco_pair", "bco_pair", {"beta": 0.1}),
    ],
)
def test_a_loss_type_of_dpo_is_an_objective(loss_type, objective, more):
    found = recipe(rlhf_type="dpo", loss_type=loss_type)
    assert (found.objective, found.sft_weight) == (objective, 1.0)
    assert more.items() <= found.objective_args.items()


def test_cpo_with_the_loss_of_simpo_is_simpo():
    assert recipe(rlhf_type="cpo", loss_type="simpo").to_dict() | {"output_dir": 0} == recipe().to_dict() | {
        "output_dir": 0
    }


@pytest.mark.parametrize(
    ("method", "flags", "line"),
    [
        ("simpo", {}, "SimPO + 1.0 NLL; set --cpo_alpha 0 for the paper's SimPO"),
        ("simpo", {"cpo_alpha": 0}, "SimPO"),
        ("dpo", {}, "DPO + 1.0 NLL; set --rpo_alpha 0 for the paper's DPO"),
        ("dpo", {"rpo_alpha": 0}, "DPO"),
        ("dpo", {"loss_type": "ipo"}, "IPO + 1.0 NLL; set --rpo_alpha 0 for the paper's IPO"),
        ("cpo", {}, "CPO + 1.0 NLL"),
        ("kto", {}, "KTO"),
    ],
)
def test_the_effective_objective_is_one_line(method, flags, line):
    assert headline(recipe(rlhf_type=method, **flags), method) == line


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_flag_without_effect_says_so(name, caplog):
    before = recipe()
    with caplog.at_level(logging.INFO):
        assert recipe(f"--{name}", "false") == before
    assert f"--{name} has no effect: {NO_EFFECT[name]}." in caplog.text


@pytest.mark.parametrize("name", NOT_HERE)
def test_a_flag_that_cannot_be_had_is_refused_with_the_reason(name):
    with pytest.raises(PreftuneError, match=f"--{name} 7.5 is not supported: "):
        recipe(f"--{name}", "7.5")


@pytest.mark.parametrize("name", [name for name, (harmless, _) in NOT_HERE.items() if harmless[0] in (False, 0)])
def test_a_flag_that_cannot_be_had_may_ask_for_nothing(name):
    assert recipe(f"--{name}", str(NOT_HERE[name][0][0]).lower()) == recipe()


def test_no_name_stands_for_two_flags():
    names = [name for flag in FLAGS.values() for name in flag.names]
    assert len(names) == len(set(names)) and not set(names) & {*NO_EFFECT, *NOT_HERE}


def test_quant_method_may_be_bnb():
    assert recipe(quantization_bit=4, quant_method="bnb").load_in_4bit


@pytest.mark.parametrize("method", method_names())
def test_every_accepted_method_resolves(method):
    assert recipe(**(PPO if method == "ppo" else {"rlhf_type": method})).objective in (method, "reward")
    assert set(METHODS) <= set(method_names())
