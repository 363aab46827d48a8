"""A published recipe on other data and other devices: what it said of its own no longer holds."""

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe

RECIPE = """\
model_name_or_path: m
dataset_mixer: {owner/pairs: 1.0}
dataset_splits: [train_prefs, test_prefs]
do_eval: true
evaluation_strategy: steps
eval_steps: 400
per_device_train_batch_size: 2
gradient_accumulation_steps: 16
"""


@pytest.fixture
def recipe_of(tmp_path):
    def load(*overrides):
        path = tmp_path / "published.yaml"
        path.write_text(RECIPE)
        return load_recipe(path, overrides)

    return load


@pytest.fixture
def data(tmp_path):
    """A folder of pairs with the splits named."""

    def write(*splits):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for split in splits:
            (folder / f"{split}.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        return folder

    return write


def test_one_file_of_pairs_is_trained_on_and_nothing_is_evaluated(recipe_of, data, caplog):
    caplog.set_level("INFO", logger="preftune")
    file = data("mine") / "mine.jsonl"
    recipe = recipe_of(f"dataset={file}")
    assert recipe.dataset == str(file)
    assert (recipe.dataset_splits, recipe.evaluates, recipe.training.get("eval_strategy")) == (None, False, None)
    said = " ".join(record.message for record in caplog.records)
    assert "its dataset_splits is left out" in said
    assert "the data has no test split, so nothing is evaluated" in said


def test_a_mixture_of_files_is_followed_too(recipe_of, data):
    recipe = recipe_of(f"dataset_mixer={{{data('mine')}/mine.jsonl: 0.5}}")
    assert not recipe.evaluates


def test_a_folder_with_a_test_split_is_evaluated_on_it(recipe_of, data):
    recipe = recipe_of(f"dataset={data('train', 'test')}")
    assert sorted(recipe.dataset_splits) == ["test", "train"]
    assert recipe.evaluates and recipe.training["eval_strategy"] == "steps"


def test_a_copy_with_the_published_splits_keeps_them(recipe_of, data):
    shards = [f"{split}-00000-of-00001" for split in ("train_prefs", "test_prefs", "train_sft")]
    recipe = recipe_of(f"dataset={data(*shards)}")
    assert recipe.dataset_splits == ["train_prefs", "test_prefs"]


def test_another_set_on_the_hub_keeps_the_splits(recipe_of):
    assert recipe_of("dataset={owner/other: 1.0}").dataset_splits == ["train_prefs", "test_prefs"]


def test_a_changed_weight_is_not_other_data(recipe_of):
    recipe = recipe_of("dataset.owner/pairs=0.5")
    assert recipe.dataset == {"owner/pairs": 0.5}
    assert recipe.dataset_splits == ["train_prefs", "test_prefs"]


@pytest.mark.parametrize("held_out", ["eval_dataset=other.jsonl", "test_split_size=0.1"])
def test_held_out_rows_that_are_named_are_evaluated(recipe_of, data, held_out):
    recipe = recipe_of(f"dataset={data('mine')}/mine.jsonl", held_out)
    assert recipe.evaluates and recipe.training["eval_strategy"] == "steps"


def test_an_evaluation_asked_for_on_the_command_line_is_not_taken_away(recipe_of, data):
    with pytest.raises(RecipeError, match="'eval_strategy' epoch needs data"):
        recipe_of(f"dataset={data('mine')}/mine.jsonl", "eval_strategy=epoch")


def test_a_global_batch_on_the_command_line_leaves_the_accumulation_open(recipe_of):
    recipe = recipe_of("total_batch_size=128")
    assert (recipe.total_batch_size, recipe.training["per_device_train_batch_size"]) == (128, 2)
    assert "gradient_accumulation_steps" not in recipe.training
    with pytest.raises(RecipeError, match="'total_batch_size' 128 is not"):
        recipe_of("total_batch_size=128", "gradient_accumulation_steps=7")
