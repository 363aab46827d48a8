"""Every mistake in a recipe is one line that names file, key, expected, found and remedy."""

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe

MINIMAL = "model_name_or_path: small\ndataset: pairs.jsonl\n"


def error_of(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


MISTYPED = {
    "learnig_rate: 1e-6": "my.yaml: 'learnig_rate' is not a key of a recipe; did you mean 'learning_rate'?",
    "betta: 2": "'betta' is not a key of a recipe; did you mean 'beta'?",
    "gama_beta_ratio: 1": "did you mean 'gamma_beta_ratio'?",
    "max_lenght: 10": "did you mean 'max_length'?",
    "datset: x": "did you mean 'dataset'?",
    "num_epochs: 3": "did you mean 'num_train_epochs'?",
    "cpo_alfa: 1": "did you mean 'cpo_alpha'?",
    "sftweight: 1": "did you mean 'sft_weight'?",
    "warmup_ration: 0.1": "did you mean 'warmup_ratio'?",
    "xyzzy: 1": "'xyzzy' is not a key of a recipe. Remove it; known are our own keys and those of TrainingArguments.",
    "objective_args: {beta: 2}": "'objective_args' is not a key of a recipe",
    "objective: simop": "my.yaml: 'objective' 'simop' is not known; did you mean 'simpo'? Known: ",
    "lr_scheduler_type: cosin": "'lr_scheduler_type' must be one of linear, cosine",
    "optim: adamw": "'optim' must be a known name (did you mean 'adamw_torch'?), found 'adamw'.",
    "save_strategy: step": "must be one of no, steps, epoch, best (did you mean 'steps'?), found 'step'.",
    "road: pakced": "'road' must be one of auto, packed, padded (did you mean 'packed'?), found 'pakced'.",
    "torch_dtype: float8": "'torch_dtype' must be one of auto, float32, bfloat16, float16",
    "sft_normalization: tokens": "'sft_normalization' must be one of token, sequence, sum (did you mean 'token'?)",
    "loss_type: hing": "my.yaml: 'loss_type' must be 'sigmoid' or 'hinge' for simpo, found 'hing'.",
}

WRONG_TYPE = {
    "learning_rate: fast": "my.yaml: 'learning_rate' must be a number, found 'fast'.",
    "learning_rate: true": "'learning_rate' must be a number, found True.",
    "learning_rate: .nan": "'learning_rate' must be a number, found nan.",
    "learning_rate: [1, 2]": "'learning_rate' must be a number, found [1, 2].",
    "learning_rate:": "'learning_rate' must be a number, found null.",
    "seed: 1.5": "'seed' must be a whole number, found 1.5.",
    "bf16: maybe": "'bf16' must be true or false, found 'maybe'.",
    "share_prompt: 1": "'share_prompt' must be true or false, found 1.",
    "run_name: 7": "'run_name' must be text (put it in quotes) or null, found 7.",
    "columns: prompt": "'columns' must be a mapping (key: value) or null, found 'prompt'.",
    "columns: {1: prompt}": "'columns' must be a mapping whose keys are text (put them in quotes)",
    "columns: {a: 1}": "'columns' must be a mapping in which each value is text (put it in quotes) or null",
    "eval_dataset: [1]": "'eval_dataset' must be a list in which each entry is text",
    "beta: strong": "'beta' must be a number, found 'strong'.",
    "simpo_gamma: big": "'simpo_gamma' must be a number, found 'big'.",
    "parallelism_config: {a: 1}": "'parallelism_config' must be left out: it cannot be set in a recipe",
}

OUT_OF_RANGE = {
    "beta: 0": "my.yaml: 'beta' must be a number above 0, found 0.",
    "beta: 0\nsimpo_gamma: 1": "'beta' must be a number above 0, found 0.",
    "label_smoothing: 0.5": "'label_smoothing' must be a number in [0, 0.5), found 0.5.",
    "gamma_beta_ratio: -1": "'gamma_beta_ratio' must be a number of at least 0, found -1.",
    "learning_rate: -1e-6": "'learning_rate' must be at least 0, found -1e-06.",
    "num_train_epochs: 0": "'num_train_epochs' must be above 0, found 0.",
    "checkpoint_layers: -1": "'checkpoint_layers' must be auto or at least 0, found -1.",
    "max_length: 1": "'max_length' must be at least 2",
    "micro_batch_tokens: 0": "'micro_batch_tokens' must be at least 1, found 0.",
    "sft_weight: -1": "'sft_weight' must be at least 0, found -1.",
    "warmup_ratio: 5": "'warmup_ratio' must be at least 0 and below 1, found 5. For a number of",
    "adam_beta2: 1": "'adam_beta2' must be at least 0 and below 1, found 1.",
    "save_total_limit: 0": "'save_total_limit' must be at least 1, found 0.",
    "model_name_or_path: ''": "'model_name_or_path' is empty. Give a path or a name.",
    "dataset: []": "'dataset' is empty. Give a path or a name.",
}

CONTRADICTORY = {
    "eval_dataset: e\ntest_split_size: 0.1": "'eval_dataset' and 'test_split_size' both say what is held out.",
    "objective: dpo\nreference_cache: c": "'reference_cache' 'c' has no effect: precompute_reference is false.",
    "use_peft: true\nbnb_4bit_quant_type: fp4": "'bnb_4bit_quant_type' 'fp4' has no effect: load_in_4bit is false.",
    "value_head_format: bin": "'value_head_format' 'bin' has no effect: simpo trains no value head.",
    "use_peft: true\nlora_init: svd": "'lora_init' must be true, gaussian, pissa, pissa_niter_N or olora, found 'svd'.",
    "objective: kto\nsft_weight: 1": "'sft_weight' 1 needs pairs or ranked responses; kto has neither.",
    "objective: reward\nsft_weight: 1": "'sft_weight' 1 needs log-probs; reward trains a value head.",
    "precompute_reference: true": "my.yaml: 'precompute_reference' true has no effect: simpo has no reference model.",
    "ref_model: r": "'reference_model_name_or_path' 'r' has no effect: simpo has no reference model. Leave it out.",
    "lora_r: 8": "'lora_r' 8 has no effect: no adapter is trained (use_peft is false). Leave it out.",
    "adapter_name_or_path: a\nlora_r: 8": "'lora_r' 8 has no effect: adapter_name_or_path brings its own settings.",
    "load_in_4bit: true": "'load_in_4bit' true needs an adapter: quantised weights cannot be trained.",
    "use_peft: true\nload_in_4bit: true\nload_in_8bit: true": "'load_in_4bit' and 'load_in_8bit' are both true.",
    "objective: reward\nuse_peft: true\nload_in_4bit: true": "'objective' reward trains a value head",
    "use_peft: true\nfreeze: [head]": "'freeze' is for full training: beside an adapter all is frozen.",
    "gamma_beta_ratio: 0.8\nsimpo_gamma: 1.4": (
        "my.yaml: 'gamma_beta_ratio' 0.8 and 'simpo_gamma' 1.4 disagree (1.4 / beta 2 = 0.7). Keep one of them."
    ),
    "simpo_gamma: 1\ngamma: 2": "'simpo_gamma' 1 and 'gamma' 2 disagree. Keep one of them.",
    "sft_weight: 1\ncpo_alpha: 0.5": "'sft_weight' 1 and 'cpo_alpha' 0.5 disagree. Keep one of them.",
    "rpo_alpha: 1\ncpo_alpha: 0.5": "'rpo_alpha' 1 and 'cpo_alpha' 0.5 disagree. Keep one of them.",
    "objective: simpo\nrlhf_type: sft": "'objective' simpo and 'rlhf_type' sft disagree. Keep one of them.",
    "warmup_ratio: 0.1\nwarmup_steps: 50": "'warmup_steps' 50 and 'warmup_ratio' 0.1 disagree. Keep one of them.",
    "bf16: true\nfp16: true": "'bf16' and 'fp16' are both true. Keep one of them.",
    "fp16: true\ntorch_dtype: bfloat16": "'torch_dtype' bfloat16 and 'fp16' true disagree. Keep one of them.",
    "max_prompt_length: 1024": "'max_prompt_length' 1024 leaves no room for a response in 'max_length' 1024.",
    "objective: sft\ngamma_beta_ratio: 0.5": (
        "'gamma_beta_ratio' is a key of simpo, alphapo, but 'objective' is sft. Remove it, or set objective: simpo."
    ),
    "objective: sft\nsimpo_gamma: 0.5": "'simpo_gamma' is a key of simpo, alphapo, but 'objective' is sft.",
    "objective: sft\nsft_weight: 1": "'sft_weight' 1 adds to 'objective' sft what it already is. Leave sft_weight out.",
    "checkpoint_layers: 2\ngradient_checkpointing_kwargs: {every_n_layers: 2}": (
        "every_n_layers and 'checkpoint_layers' both say which layers are checkpointed. Keep one."
    ),
    "torch_compile: true\nfsdp: true": "'torch_compile' true and 'fsdp' do not go together: the engine gathers",
    "torch_compile_backend: inductor\ndeepspeed: z.json": "'torch_compile' true and 'deepspeed' do not go together",
    "torch_compile: true\nuse_peft: true\nload_in_4bit: true": "'torch_compile' true is not for quantised weights",
    "torch_compile_mode: reduce-overhead": "'torch_compile_mode' reduce-overhead records CUDA graphs of fixed shapes",
    "eval_strategy: steps": "'eval_strategy' steps needs data. Set eval_dataset, or leave eval_strategy out.",
    "watch: false\non_collapse: stop": "'on_collapse' 'stop' has no effect: watch is false. Leave it out.",
    "objective: reward\nwatch_prompts: 3": "'watch_prompts' 3 has no effect: reward trains a value head",
    "watch_steps: 0": "'watch_steps' must be at least 1, found 0.",
    "load_best_model_at_end: true": "'load_best_model_at_end' needs an evaluation to compare by. Set eval_dataset.",
    "load_best_model_at_end: true\neval_dataset: h": "Set save_strategy: epoch.",
    "total_batch_size: 32\nper_device_train_batch_size: 5": (
        "'total_batch_size' 32 is not a multiple of per_device_train_batch_size 5. Change it, or leave "
        "per_device_train_batch_size out."
    ),
}

SENSELESS = {
    "auto_find_batch_size: true": "'auto_find_batch_size' true is not supported: a step is cut by tokens, so set",
    "label_smoothing_factor: 0.1": "'label_smoothing_factor' 0.1 is not supported",
    "group_by_length: true": "'group_by_length' true is not supported",
    "train_sampling_strategy: group_by_length": "'train_sampling_strategy' group_by_length is not supported",
    "accelerator_config: {split_batches: true}": "'accelerator_config.split_batches' true is not supported",
    "ignore_data_skip: true": "'ignore_data_skip' true is not supported: resuming jumps to its place",
    "dataloader_drop_last: true": "'dataloader_drop_last' true is not supported",
}


@pytest.mark.parametrize(
    ("line", "message"), [*(MISTYPED | WRONG_TYPE | OUT_OF_RANGE | CONTRADICTORY | SENSELESS).items()]
)
def test_a_mistake_is_one_line_with_the_remedy(tmp_path, line, message):
    path = tmp_path / "my.yaml"
    said = line.split(":")[0]
    path.write_text("".join(m + "\n" for m in MINIMAL.splitlines() if not m.startswith(said + ":")) + line + "\n")
    error = error_of(path)
    assert message in error
    assert error.startswith(str(path))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learnig_rate=1", "command line: 'learnig_rate' is not a key of a recipe; did you mean 'learning_rate'?"),
        ("beta=-1", "command line: 'beta' must be a number above 0, found -1."),
        ("learning_rate=fast", "command line: 'learning_rate' must be a number, found 'fast'."),
        ("max_length=", "command line: 'max_length' must be a whole number, found null."),
        ("--learning_rate", "command line: '--learning_rate' has no value. Write learning_rate=VALUE, with '=' and no"),
        ("fast", "command line: expected key=value, found 'fast'. Write for example learning_rate=5e-7."),
        ("=5", "command line: expected key=value, found '=5'."),
        ("a..b=5", "command line: expected key=value, found 'a..b=5'."),
        ("max_length.x=5", "command line: 'max_length.x' goes below 'max_length', but that is 64 in "),
        ("run_name.x=5", "command line: 'run_name' must be text or null, found {'x': 5}."),
    ],
)
def test_a_mistake_on_the_command_line_is_named_as_such(tmp_path, word, message):
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL + "max_length: 64\n")
    assert message in error_of(path, [word])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty. A recipe needs at least model_name_or_path and dataset."),
        (b"# only a comment\n", "the file is empty."),
        (b"- a\n- b\n", "expected a mapping (key: value) at the top, found a list."),
        (b"just words\n", "expected a mapping (key: value) at the top, found str 'just words'."),
        (b"a: 1\nb: [1, 2\nc: 3\n", "my.yaml line 3: not valid YAML:"),
        (b"a: 1\n\tb: 2\n", "Indent with spaces."),
        (b"seed: 1\nbeta: 2\nseed: 1\n", "my.yaml line 3: not valid YAML: 'seed' is said twice."),
        (b"a: !!python/object:os.system 1\n", "my.yaml line 1: not valid YAML: could not determine a constructor"),
        (b"a: *nowhere\n", "my.yaml line 1: not valid YAML: found undefined alias"),
        (b"a: \xff\n", "not UTF-8 text (byte 4). Save the file as UTF-8."),
        (b"a: \x00\n", "not valid YAML:"),
        (b"a: 2024-13-45\n", "not valid YAML:"),
        (b"1: 2\n", "expected text as a key, found 1. Put it in quotes."),
        (b"dataset: d\n", "'model_name_or_path' is missing. Add for example model_name_or_path: path/to/model."),
        (b"model_name_or_path: m\n", "'dataset' is missing. Add for example dataset: path/to/pairs.jsonl."),
        (b"model_name_or_path: m\ndataset: d\nlr_scheduler_kwargs: &a {b: *a}\n", "nested without end"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    error = error_of(path)
    assert message in error
    assert error.startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b": }', "my.json line 2: not valid JSON: Expecting value."),
        ('{"seed": 1, "seed": 2}', "'seed' is said twice. Keep one of them."),
        ("", "the file is empty."),
    ],
)
def test_a_json_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "my.json"
    path.write_text(content)
    assert message in error_of(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert error_of(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: there is no such file."
    assert error_of(tmp_path) == f"{tmp_path}: expected a recipe file, found a folder. Name the YAML file in it."


def test_a_recipe_made_in_python_is_checked_too():
    from preftune.recipe import Recipe

    with pytest.raises(RecipeError, match="recipe: 'beta' must be a number above 0"):
        Recipe(model_name_or_path="m", dataset="d", objective_args={"beta": -1})
