"""What `scripts/run_simpo.py` fills in, and how its command line may be written."""

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe
from preftune.recipe.simpo_repository import ONLY, WITHOUT_EFFECT, filled_in, to_overrides
from preftune.recipe.training import training_kinds

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


def test_flash_attention_by_its_older_name(file):
    assert load_recipe(file("use_flash_attention_2: true\n")).attn_implementation == "flash_attention_2"
    assert load_recipe(file("use_flash_attention_2: false\n")).attn_implementation is None
    both = "use_flash_attention_2: true\nattn_implementation: eager\n"
    assert load_recipe(file(both)).attn_implementation == "eager"
