"""The YAML of the published pages, as it stands there, and copies as users write them."""

from pathlib import Path

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe

PAGES = Path(__file__).parent / "published"
WORKFLOWS = {
    1: {
        "model_name_or_path": "mistralai/Mistral-7B-v0.1",
        "torch_dtype": "bfloat16",
        "dataset": {"HuggingFaceH4/ultrafeedback_binarized": 1.0},
        "dataset_splits": ["train_prefs", "test_prefs"],
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
    2: {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "dataset": {"argilla/ultrafeedback-binarized-preferences-cleaned": 1.0},
        "beta": 2.5,
        "gamma_beta_ratio": 0.5,
        "learning_rate": 5e-7,
        "sft_weight": 0.1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "output_dir": "./outputs/llama3-8b-simpo",
    },
    3: {
        "model_name_or_path": "deepseek-ai/deepseek-math-7b-base",
        "dataset": {"argilla/distilabel-math-preference-dpo": 1.0},
        "beta": 5.0,
        "gamma_beta_ratio": 0.7,
        "learning_rate": 3e-7,
        "sft_weight": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
    },
}
FIXES = [  # the trouble-shooting entries, in their order
    {"learning_rate": 3e-7},
    {"beta": 1.0},
    {"sft_weight": 0.1},
    {"beta": 5.0, "gamma_beta_ratio": 0.8},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
    {"gradient_checkpointing": True},
]

COPY = """\
# my copy of llama-3-8b-instruct-simpo.yaml
model_name_or_path: &model meta-llama/Meta-Llama-3-8B-Instruct   # local path later
tokenizer_name_or_path: *model
base_model_revision: null
model_code_revision: null
torch_dtype: null
use_flash_attention_2: true
trust_remote_code: False
use_peft: false
dataset_mixer:
  princeton-nlp/llama3-ultrafeedback: 1.0
dataset_splits: [train, test]
dataset_configs: null
text_column: text
truncation_side: left
auto_insert_empty_system_msg: true
preprocessing_num_workers: 12
dataset_num_proc: 4
chat_template: "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
bf16: true
beta: "2.5"
gamma_beta_ratio: '0.55'
loss_type: sigmoid
sft_weight: 0.0
label_smoothing: 0
label_pad_token_id: -100
padding_value: null
max_completion_length: 1024
max_target_length: 128
truncation_mode: keep_end
is_encoder_decoder: null
disable_dropout: true
generate_during_eval: false
learning_rate: "5e-7"
warmup_ratio: 1e-1
do_eval: true
evaluation_strategy: "steps"
eval_steps: 400
gradient_accumulation_steps: 16
per_device_train_batch_size: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
max_length: 2048
max_prompt_length: 1800
overwrite_output_dir: true
logging_dir: logs
report_to: [wandb]
run_name: mine
save_strategy: "no"
"""


def found_in(recipe, wanted):
    flat = recipe.to_dict()
    return {key: flat.get(key, flat.get(key.replace("gradient_check", "activation_check"))) for key in wanted}


@pytest.mark.parametrize("number", WORKFLOWS)
def test_a_workflow_as_it_stands_on_its_page_resolves_to_its_values(number):
    recipe = load_recipe(PAGES / f"workflow-{number}.yaml")
    assert found_in(recipe, WORKFLOWS[number]) == WORKFLOWS[number]


@pytest.mark.parametrize("number", range(len(FIXES)))
def test_a_fix_of_the_page_goes_into_a_recipe(number, tmp_path):
    text = (PAGES / "fixes.yaml").read_text().split("---\n")[number]
    (tmp_path / "my.yaml").write_text(f"model_name_or_path: m\ndataset: d\n{text}")
    assert found_in(load_recipe(tmp_path / "my.yaml"), FIXES[number]) == FIXES[number]


def test_there_are_as_many_fixes_as_values():
    assert len((PAGES / "fixes.yaml").read_text().split("---\n")) == len(FIXES)


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(COPY)
    return path


def test_a_users_copy_with_comments_anchors_and_numbers_in_quotes_resolves(copy):
    wanted = {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "tokenizer_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "attn_implementation": "flash_attention_2",
        "dataset": {"princeton-nlp/llama3-ultrafeedback": 1.0},
        "dataset_num_proc": 4,
        "beta": 2.5,
        "gamma_beta_ratio": 0.55,
        "learning_rate": 5e-7,
        "warmup_steps": 0.1,
        "truncation": "keep_end",
        "eval_strategy": "steps",
        "report_to": ["wandb"],
        "save_strategy": "no",
    }
    recipe = load_recipe(copy)
    assert found_in(recipe, wanted) == wanted
    assert recipe.evaluates


def test_the_resolved_recipe_of_a_copy_runs_again_to_the_same(copy, tmp_path):
    recipe = load_recipe(copy)
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    "key",
    [
        "base_model_revision",
        "text_column",
        "truncation_side",
        "label_pad_token_id",
        "max_completion_length",
    ],
)
def test_a_key_without_effect_is_said_once(copy, caplog, key):
    caplog.set_level("INFO", logger="preftune")
    copy.write_text(COPY.replace("base_model_revision: null", "base_model_revision: x"))
    load_recipe(copy)
    assert sum(f"'{key}' has no effect: " in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("preprocessing_num_workers", "preprocessing_num_worker", "did you mean 'preprocessing_num_workers'?"),
        ("gamma_beta_ratio", "gamma_beta_ration", "did you mean 'gamma_beta_ratio'?"),
        ("attention_2", "atention_2", "did you mean 'use_flash_attention_2'?"),
        ("is_encoder_decoder: null", "is_encoder_decoder: true", "models are decoders"),
        ("system_msg: true", "system_msg: false", "'auto_insert_empty_system_msg' false is not supported"),
        ("loss_type: sigmoid", "loss_type: ipo", "'loss_type' must be 'sigmoid' or 'hinge' for simpo, found 'ipo'"),
    ],
)
def test_a_mistake_in_a_copy_is_one_line_that_names_the_right_one(copy, before, after, error):
    copy.write_text(COPY.replace(before, after))
    with pytest.raises(RecipeError, match=error) as caught:
        load_recipe(copy)
    assert str(caught.value).startswith(str(copy)) and "\n" not in str(caught.value)
