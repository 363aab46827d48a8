"""What a sweep tries."""

import pytest

from preftune.errors import RecipeError
from preftune.experiments.grid import combinations, published, read_grid
from preftune.objectives import objective_defaults

KEYS = {"learning_rate", "sft_weight"}


def test_values_are_numbers_where_they_look_like_numbers():
    assert read_grid(["learning_rate=3e-7,5e-7", "loss_type=sigmoid,hinge", "beta=2,2.5"]) == {
        "learning_rate": [3e-7, 5e-7],
        "loss_type": ["sigmoid", "hinge"],
        "beta": [2, 2.5],
    }


@pytest.mark.parametrize("word", ["beta", "=2", "beta=", "beta=[2", "beta=2,,3"])
def test_a_word_without_values_is_refused(word):
    with pytest.raises(RecipeError, match="--try"):
        read_grid([word])


def test_a_key_that_is_named_twice_is_refused():
    with pytest.raises(RecipeError, match="twice"):
        read_grid(["beta=1", "beta=2"])


def test_seeds_are_not_tried():
    with pytest.raises(RecipeError, match=r"--try 'seed=1,2'.*--seeds"):
        read_grid(["seed=1,2"])


def test_all_combinations_come_in_order():
    found = combinations({"a": [1, 2], "b": ["x", "y", "z"]})
    assert len(found) == 6
    assert found[0] == {"a": 1, "b": "x"}
    assert found[4] == {"a": 2, "b": "y"}


def test_drawn_combinations_are_different_ones_of_the_grid_and_the_same_for_a_seed():
    grid = {"a": [1, 2], "b": [1, 2, 3], "c": [1, 2]}
    drawn = combinations(grid, 5, seed=3)
    assert len({tuple(one.values()) for one in drawn}) == 5
    assert all(one in combinations(grid) for one in drawn)
    assert drawn == combinations(grid, 5, seed=3)


@pytest.mark.parametrize("trials", [0, 13])
def test_more_trials_than_combinations_are_refused(trials):
    with pytest.raises(RecipeError, match="12 combinations"):
        combinations({"a": [1, 2], "b": [1, 2, 3], "c": [1, 2]}, trials)


def test_nothing_to_try_is_refused():
    with pytest.raises(RecipeError, match="--try"):
        combinations({})


@pytest.mark.parametrize("name", "simpo dpo ipo cpo kto orpo rdpo slic_hf rrhf sft".split())
def test_published_grids_name_keys_of_their_objective(name):
    keys = KEYS | set(objective_defaults(name))
    assert set(published(name, "search")) <= keys
    assert set(published(name, "best")) <= keys


def test_an_unknown_grid_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'simpo'"):
        published("simp", "search")
