"""From a file and overrides to a recipe."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from preftune.recipe import Recipe, describe_objective, load_recipe
from preftune.recipe.schema import SCHEMA_KEYS
from preftune.recipe.training import training_kinds

MINIMAL = "model_name_or_path: small\ndataset: pairs.jsonl\n"


@pytest.fixture
def recipe_of(tmp_path):
    def make(text: str = "", *overrides: str, name: str = "my.yaml") -> Recipe:
        path = tmp_path / name
        path.write_text(MINIMAL + text, encoding="utf-8")
        return load_recipe(path, overrides)

    return make


def test_a_minimal_recipe_is_filled_with_the_defaults(recipe_of):
    recipe = recipe_of()
    assert recipe.objective == "simpo"
    assert recipe.objective_args == {
        "beta": 2.0,
        "gamma_beta_ratio": 0.5,
        "label_smoothing": 0.0,
        "loss_type": "sigmoid",
    }
    assert recipe.training["learning_rate"] == 1e-6
    assert recipe.training["output_dir"] == "runs/my"
    assert recipe.max_length == 1024


def test_keys_are_sorted_into_schema_objective_and_training(recipe_of):
    recipe = recipe_of("beta: 2.5\nmax_length: 512\nweight_decay: 0.1\n")
    assert recipe.objective_args["beta"] == 2.5
    assert recipe.max_length == 512
    assert recipe.training["weight_decay"] == 0.1


@pytest.mark.parametrize("text", ["5e-7", "'5e-7'", "5.0e-7", "0.0000005", '"0.5e-06"'])
def test_a_number_may_be_written_in_any_way(recipe_of, text):
    assert recipe_of(f"learning_rate: {text}\n").training["learning_rate"] == 5e-7


def test_overrides_win_over_the_file_and_the_last_over_the_first(recipe_of):
    recipe = recipe_of("beta: 2.5\nseed: 1\n", "beta=3", "--seed=2", "--learning-rate=5e-7", "seed=3")
    assert recipe.objective_args["beta"] == 3
    assert recipe.training["seed"] == 3
    assert recipe.training["learning_rate"] == 5e-7


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("bf16=true", "bf16", True),
        ("report_to=[wandb, tensorboard]", "report_to", ["wandb", "tensorboard"]),
        ("run_name=7", "run_name", "7"),
        ("run_name=2024-01-01", "run_name", "2024-01-01"),
        ("run_name=a: b", "run_name", "a: b"),
        ("run_name=a=b", "run_name", "a=b"),
        ("hub_model_id=null", "hub_model_id", None),
        ("save_strategy=no", "save_strategy", "no"),
        ("warmup_steps=0.05", "warmup_steps", 0.05),
        ("resume_from_checkpoint=true", "resume_from_checkpoint", True),
    ],
)
def test_override_values_are_read_as_yaml_where_the_key_wants_it(recipe_of, word, key, value):
    assert recipe_of("", word).training[key] == value


def test_a_template_on_the_command_line_is_text(recipe_of):
    assert recipe_of("", "chat_template={% for m in messages %}x").chat_template == "{% for m in messages %}x"


def test_a_nested_override_changes_one_entry_of_a_mapping(recipe_of):
    recipe = recipe_of("columns: {question: prompt, a: chosen}\n", "columns.a=rejected", "columns.b=chosen")
    assert recipe.columns == {"question": "prompt", "a": "rejected", "b": "chosen"}


def test_a_nested_override_makes_a_mapping_where_there_is_none(recipe_of):
    recipe = recipe_of("", "lr_scheduler_kwargs.num_cycles=2")
    assert recipe.training["lr_scheduler_kwargs"] == {"num_cycles": 2}


def test_numbers_below_a_mapping_may_be_written_with_an_exponent(recipe_of):
    recipe = recipe_of("lr_scheduler_kwargs: {min_lr: 1e-8}\n")
    assert recipe.training["lr_scheduler_kwargs"] == {"min_lr": 1e-8}


def test_python_values_override_without_being_read_as_yaml(tmp_path):
    given = {"model_name_or_path": Path("m"), "dataset": ["a", "b"], "run_name": "no", "beta": 3.0}
    recipe = load_recipe(None, {**given, "output_dir": tmp_path})
    assert (recipe.model_name_or_path, recipe.dataset) == ("m", ["a", "b"])
    assert (recipe.training["run_name"], recipe.output_dir) == ("no", str(tmp_path))


def test_json_is_accepted(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"model_name_or_path": "m", "dataset": "d", "learning_rate": 5e-7}')
    assert load_recipe(path).training["learning_rate"] == 5e-7


def test_anchors_and_comments_are_accepted(recipe_of):
    recipe = recipe_of("# a comment\nlr_scheduler_kwargs: &x {a: 1}\naccelerator_config: {<<: *x, b: 2}\n")
    assert recipe.training["accelerator_config"] == {"a": 1, "b": 2}


def test_an_unquoted_no_is_a_strategy(recipe_of):
    assert recipe_of("save_strategy: no\n").training["save_strategy"] == "no"


def test_an_evaluation_set_is_evaluated_every_epoch_unless_said_otherwise(recipe_of):
    assert recipe_of("eval_dataset: h.jsonl\n").training["eval_strategy"] == "epoch"
    assert recipe_of("eval_dataset: h.jsonl\neval_strategy: no\n").training["eval_strategy"] == "no"
    assert "eval_strategy" not in recipe_of().training


def test_sft_has_the_learning_rate_of_ordinary_fine_tuning(recipe_of):
    assert recipe_of("objective: sft\n").training["learning_rate"] == 2e-5


def test_a_recipe_reads_back_as_it_was_written(recipe_of, tmp_path):
    recipe = recipe_of(
        "learning_rate: 5e-7\nchat_template: \"{{ '中' }}\\n\\n  é #\"\ncolumns: {问: prompt}\nrun_name: '5e-7'\n"
        "lr_scheduler_kwargs: {min_lr: 1e-8}\nsave_strategy: no\nreport_to: [wandb]\neval_dataset: [a, b]\n"
    )
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


SCHEMA_VALUES = {
    "model_name_or_path": "m",
    "tokenizer_name_or_path": "t",
    "model_revision": "1e5",
    "torch_dtype": "bfloat16",
    "attn_implementation": "eager",
    "trust_remote_code": True,
    "master_weights": False,
    "optimizer_state": "8bit",
    "checkpoint_layers": "auto",
    "device_map": {"model.layers": 1, "": 0},
    "rescue_minutes": 0.5,
    "on_nonfinite": "skip",
    "watch": False,
    "watch_prompts": 7,
    "watch_steps": 3,
    "on_collapse": "rollback",
    "record_margins": False,
    "freeze": ["embeddings", "layers.0-1"],
    "load_in_4bit": True,
    "load_in_8bit": True,
    "bnb_4bit_quant_type": "fp4",
    "chat_template": "x\ny",
    "chat_template_kwargs": {"enable_thinking": False},
    "add_template_tokens": False,
    "use_peft": True,
    "adapter_name_or_path": "a",
    "lora_r": 4,
    "lora_alpha": 7.5,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj"],
    "lora_modules_to_save": ["norm"],
    "use_rslora": True,
    "use_dora": True,
    "lora_init": "pissa",
    "dataset": ["a", "b"],
    "eval_dataset": "no",
    "columns": {"a": "prompt"},
    "ranked_pairs": "all",
    "on_bad_row": "skip",
    "dataset_splits": ["train_prefs", "test_prefs"],
    "dataset_configs": {"a": "en"},
    "dataset_catalog": "c.yaml",
    "mixer_order": "head",
    "test_split_size": 0.05,
    "system_prompt": "Be brief.",
    "streaming": True,
    "streaming_buffer": 100,
    "truncation": "keep_end",
    "cut_response_end": "append",
    "tokenization": "princeton",
    "dedupe": True,
    "decontaminate": ["q.txt"],
    "dataset_num_proc": 2,
    "tokens_cache": "t",
    "max_length": 77,
    "max_prompt_length": 33,
    "objective": "simpo",
    "sft_weight": 0.05,
    "sft_normalization": "sequence",
    "reference_model_name_or_path": "r",
    "reference_model_revision": "v1",
    "precompute_reference": True,
    "reference_cache": "c",
    "value_head_format": "bin",
    "micro_batch_tokens": 4096,
    "total_batch_size": 128,
    "share_prompt": False,
    "disable_dropout": False,
    "road": "padded",
}


# Keys that mean something only beside another.
BESIDE = {
    **dict.fromkeys(("reference_model_name_or_path", "precompute_reference"), "objective: dpo\n"),
    "reference_model_revision": "objective: dpo\nref_model: r\n",
    "reference_cache": "objective: dpo\nprecompute_reference: true\n",
    "bnb_4bit_quant_type": "use_peft: true\nload_in_4bit: true\n",
    "value_head_format": "objective: reward\n",
    "streaming": "max_steps: 3\n",
    "streaming_buffer": "streaming: true\nmax_steps: 3\n",
    **dict.fromkeys((key for key in SCHEMA_KEYS if key.startswith(("lora_", "load_in_", "use_"))), "use_peft: true\n"),
}


def test_there_is_a_value_for_every_key_of_the_schema():
    assert set(SCHEMA_VALUES) == set(SCHEMA_KEYS)


@pytest.mark.parametrize("key", SCHEMA_KEYS)
def test_every_key_of_the_schema_survives_a_round_trip(recipe_of, tmp_path, key):
    recipe = replace(recipe_of(BESIDE.get(key, "")), **{key: SCHEMA_VALUES[key]})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml")
    assert again == recipe
    assert getattr(again, key) == SCHEMA_VALUES[key]


def test_the_values_of_training_arguments_survive_a_round_trip(recipe_of, tmp_path):
    from preftune.recipe.compat import REFUSED

    values = {
        key: value
        for key, value in {bool: True, int: 7, float: 0.25, str: "text"}.items()
        for key, value in {name: value for name, kind in training_kinds().items() if kind is key}.items()
        if key not in REFUSED and key not in ("load_best_model_at_end", "fp16", "eval_on_start")
    }
    recipe = recipe_of(yaml.safe_dump(values), "output_dir=x")
    assert values.items() <= recipe.training.items()
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_the_objective_is_built_with_the_values_of_the_recipe(recipe_of):
    objective = recipe_of("beta: 2.5\nloss_type: hinge\n").build_objective()
    assert (objective.beta, objective.loss_type) == (2.5, "hinge")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sft_weight: 1.0\n", "simpo: -log σ(2·(A_w - A_l - 0.5)) + 1·NLL(chosen)/token"),
        ("beta: 10\ngamma_beta_ratio: 0.3\n", "simpo: -log σ(10·(A_w - A_l - 0.3))"),
        (
            "cpo_alpha: 0.05\nsft_normalization: sequence\n",
            "simpo: -log σ(2·(A_w - A_l - 0.5)) + 0.05·NLL(chosen)/|y_w|",
        ),
        ("objective: sft\n", "sft: -log π(y|x) per token"),
        ("objective: slic_hf\n", "slic_hf: max(0, 1 - S_w + S_l) + 0.1·NLL(chosen)"),
        ("objective: cpo\n", "cpo: -log σ(0.1·(S_w - S_l)) + 1·NLL(chosen)/token"),
    ],
)
def test_the_effective_objective_is_stated_as_a_formula(recipe_of, text, line):
    assert describe_objective(recipe_of(text)) == line


def test_the_demo_recipe_resolves():
    recipe = load_recipe(Path(__file__).parents[2] / "training_configs/demo-simpo.yaml")
    assert recipe.objective_args | {} == recipe.objective_args
    assert (recipe.objective_args["beta"], recipe.sft_weight, recipe.total_batch_size) == (2.0, 1.0, 32)
    assert recipe.training["warmup_steps"] == 0.1
    assert recipe.output_dir == "runs/demo-simpo"


def test_loading_says_what_it_converted(recipe_of, caplog):
    with caplog.at_level(logging.INFO, logger="preftune"):
        recipe_of("cpo_alpha: 1.0\noverwrite_output_dir: true\n")
    lines = [record.message for record in caplog.records]
    assert any("'cpo_alpha' is read as 'sft_weight'" in line for line in lines)
    assert any("'overwrite_output_dir' has no effect" in line for line in lines)


@pytest.mark.parametrize("written", [True, "true"])
def test_fsdp_is_a_switch(written):
    """As text it would be the name of an option that nobody knows."""
    assert load_recipe(None, {"model_name_or_path": "m", "dataset": "d", "fsdp": written}).training["fsdp"] is True
