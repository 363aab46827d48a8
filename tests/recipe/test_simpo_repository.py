"""What `scripts/run_simpo.py` fills in, and how its command line may be written."""

import pytest

from preftune.data.truncate import TRUNCATION_ALIASES
from preftune.errors import RecipeError
from preftune.recipe import compat, load_recipe
from preftune.recipe.schema import SCHEMA_KEYS
from preftune.recipe.simpo_repository import KEYS, ONLY, WITHOUT_EFFECT, filled_in, to_overrides
from preftune.recipe.training import training_kinds
from preftune.recipe.trl import TRL_KEYS

MINIMAL = "model_name_or_path: m\ndataset: {owner/name: 1.0}\n"


@pytest.fixture
def file(tmp_path):
    def write(text=""):
        path = tmp_path / "my.yaml"
        path.write_text(MINIMAL + text)
        return path

    return write


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--beta=3"], ["--beta=3"]),
        (["--beta", "3", "seed=1"], ["--beta=3", "seed=1"]),
        (["--run_name", "a=b"], ["--run_name=a=b"]),
        (["--lr_scheduler_kwargs.min_lr", "1e-8"], ["--lr_scheduler_kwargs.min_lr=1e-8"]),
        (["--bf16", "--beta=3"], ["--bf16", "--beta=3"]),
        (["--report_to=wandb,tensorboard"], ["--report_to=[wandb,tensorboard]"]),
        (["--dataset_splits", "train,test"], ["--dataset_splits=[train,test]"]),
        (["--dataset_splits=[train,test]"], ["--dataset_splits=[train,test]"]),
        (["--run_name=a,b"], ["--run_name=a,b"]),
    ],
)
def test_overrides_may_be_written_with_equals_or_a_space_and_lists_with_commas(words, overrides):
    assert to_overrides(words) == overrides


def test_a_silent_file_gets_the_repositorys_defaults_and_each_is_said(file, caplog):
    caplog.set_level("INFO", logger="preftune")
    assert filled_in(file(), []) == ["gamma_beta_ratio=0.25", "max_length=512", "max_prompt_length=128"]
    said = [record.message for record in caplog.records]
    for key, value in (("gamma_beta_ratio", "0.25"), ("max_length", "512"), ("max_prompt_length", "128")):
        assert sum(line.startswith(f"'{key}' is not given: {value} ") for line in said) == 1
    assert sum("learning_rate 5e-5" in line for line in said) == 1


@pytest.mark.parametrize("said", ["gamma_beta_ratio: 0.5", "simpo_gamma: 1.0", "gamma: 1"])
def test_a_margin_that_is_given_under_any_name_stays(file, said):
    path = file(f"{said}\n")
    recipe = load_recipe(path, filled_in(path, []))
    assert recipe.objective_args["gamma_beta_ratio"] == 0.5


def test_what_the_command_line_gives_is_not_filled_in(file):
    words = ["--gamma_beta_ratio=0.4", "max_length=2048", "max_prompt_length=1800"]
    assert filled_in(file(), words) == []


@pytest.mark.parametrize(("length", "filled"), [(1024, ["max_prompt_length=128"]), (100, [])])
def test_the_prompt_limit_is_filled_in_where_it_leaves_room(file, length, filled):
    assert filled_in(file(f"max_seq_length: {length}\ngamma_beta_ratio: 0.5\n"), []) == filled


def test_other_objectives_keep_their_own_defaults(file):
    assert filled_in(file("objective: dpo\n"), []) == []
    assert filled_in(file(), ["rlhf_type=sft"]) == []


def test_the_learning_rate_and_the_schedule_stay_ours(file):
    path = file()
    training = load_recipe(path, filled_in(path, [])).training
    assert (training["learning_rate"], training["num_train_epochs"], training["warmup_steps"]) == (1e-6, 1, 0.1)


@pytest.mark.parametrize(
    ("model", "tokenization", "template"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", "princeton", "mistral-simpo"),
        ("alignment-handbook/zephyr-7b-sft-full", "princeton", None),
        ("mistralai/Mistral-7B-Instruct-v0.2", "preftune", None),
    ],
)
def test_exact_runs_of_mistral_get_the_repositorys_template(file, model, tokenization, template):
    path = file()
    words = [f"model_name_or_path={model}", f"tokenization={tokenization}"]
    assert load_recipe(path, [*filled_in(path, words), *words]).chat_template == template


def test_an_evaluation_that_is_asked_for_gets_the_repositorys_splits(file):
    path = file("do_eval: true\n")
    recipe = load_recipe(path, filled_in(path, []))
    assert recipe.dataset_splits == ["train", "test"]
    assert recipe.evaluates


def test_a_splits_list_alone_asks_for_no_evaluation(file):
    assert not load_recipe(file("dataset_splits: [train, test]\n")).evaluates


# Every key of the repository's three classes of settings, TrainingArguments as of transformers 4.44 among them.
ARGUMENTS = """
base_model_revision model_name_or_path model_revision model_code_revision torch_dtype tokenizer_name_or_path
trust_remote_code attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save
load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage chat_template dataset_mixer
text_column dataset_splits dataset_configs preprocessing_num_workers truncation_side auto_insert_empty_system_msg
max_length max_prompt_length max_completion_length max_target_length beta gamma_beta_ratio sft_weight label_smoothing
loss_type disable_dropout label_pad_token_id padding_value truncation_mode generate_during_eval is_encoder_decoder
model_init_kwargs dataset_num_proc
output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy prediction_loss_only
per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size
gradient_accumulation_steps eval_accumulation_steps eval_delay torch_empty_cache_steps learning_rate weight_decay
adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs
warmup_ratio warmup_steps log_level log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step
logging_steps logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors save_on_each_node
save_only_model restore_callback_states_from_checkpoint no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval
use_ipex bf16 fp16 fp16_opt_level half_precision_backend bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend
tpu_num_cores tpu_metrics_debug debug dataloader_drop_last eval_steps dataloader_num_workers
dataloader_prefetch_factor past_index run_name disable_tqdm remove_unused_columns label_names load_best_model_at_end
metric_for_best_model greater_is_better ignore_data_skip fsdp fsdp_min_num_params fsdp_config
fsdp_transformer_layer_cls_to_wrap accelerator_config deepspeed label_smoothing_factor optim optim_args adafactor
group_by_length length_column_name report_to ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
dataloader_pin_memory dataloader_persistent_workers skip_memory_metrics use_legacy_prediction_loop push_to_hub
resume_from_checkpoint hub_model_id hub_strategy hub_token hub_private_repo hub_always_push gradient_checkpointing
gradient_checkpointing_kwargs include_inputs_for_metrics eval_do_concat_batches fp16_backend evaluation_strategy
push_to_hub_model_id push_to_hub_organization push_to_hub_token mp_parameters auto_find_batch_size full_determinism
torchdynamo ray_scope ddp_timeout torch_compile torch_compile_backend torch_compile_mode dispatch_batches
split_batches include_tokens_per_second include_num_input_tokens_seen neftune_noise_alpha optim_target_modules
batch_eval_metrics eval_on_start use_liger_kernel eval_use_gather_object
""".split()


def test_every_key_of_the_repository_is_understood():
    own = {"beta", "gamma_beta_ratio", "label_smoothing", "loss_type", "warmup_ratio", *SCHEMA_KEYS, *training_kinds()}
    others = {*compat.ALIASES, *compat.IGNORED, *compat.REFUSED, *compat.RENAMED_BY_TRANSFORMERS, *TRUNCATION_ALIASES}
    assert {*ARGUMENTS} <= own | others | {*KEYS, *TRL_KEYS}


def test_keys_of_the_repository_are_none_of_ours():
    assert not {*WITHOUT_EFFECT, *ONLY} & {*training_kinds()}


@pytest.mark.parametrize("key", ONLY)
def test_what_is_not_done_here_is_refused_unless_it_asks_for_nothing(file, key):
    allowed = ONLY[key][0][-1]
    load_recipe(file(), {key: allowed})
    with pytest.raises(RecipeError, match=f"'{key}' .* is not supported"):
        load_recipe(file(), {key: "other"})


def test_cpo_simpos_kind_of_loss_is_an_objective(file):
    assert load_recipe(file("loss_type: simpo\nobjective: cpo\n")).objective == "simpo"
    with pytest.raises(RecipeError, match="'loss_type'"):
        load_recipe(file("loss_type: simpo\nobjective: dpo\n"))


def test_switches_of_older_files(file):
    assert load_recipe(file("use_flash_attention_2: true\n")).attn_implementation == "flash_attention_2"
    assert load_recipe(file("use_flash_attention_2: false\n")).attn_implementation is None
    assert load_recipe(file("adafactor: true\n")).training["optim"] == "adafactor"
    with pytest.raises(RecipeError, match="'use_flash_attention_2' must be true or false, found 'yes please'"):
        load_recipe(file("use_flash_attention_2: yes please\n"))
    both = "use_flash_attention_2: true\nattn_implementation: eager\n"
    assert load_recipe(file(both)).attn_implementation == "eager"
