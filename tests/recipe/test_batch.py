"""total_batch_size = per_device_train_batch_size x gradient_accumulation_steps x processes."""

import pytest

from preftune.errors import RecipeError
from preftune.recipe import load_recipe, resolve_batch


def batch(processes, **values):
    return resolve_batch(load_recipe(None, {"model_name_or_path": "m", "dataset": "d", **values}), processes)


@pytest.mark.parametrize(
    ("values", "processes", "expected"),
    [
        ({}, 2, (8, 1, 2)),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16}, 4, (2, 16, 4)),
        ({"total_batch_size": 128}, 4, (32, 1, 4)),
        ({"total_batch_size": 128, "per_device_train_batch_size": 2}, 4, (2, 16, 4)),
        ({"total_batch_size": 128, "gradient_accumulation_steps": 16}, 4, (2, 16, 4)),
        ({"total_batch_size": 128, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 16}, 4, (2, 16, 4)),
    ],
)
def test_the_batch_keys_are_resolved_for_a_number_of_processes(values, processes, expected):
    found = batch(processes, **values)
    assert tuple(found) == expected
    if "total_batch_size" in values:
        assert found.total == values["total_batch_size"]


@pytest.mark.parametrize(
    ("values", "processes", "message"),
    [
        ({"total_batch_size": 32}, 3, "'total_batch_size' 32 is not a multiple of 3 processes. Change it, or choose"),
        (
            {"total_batch_size": 32, "per_device_train_batch_size": 8},
            3,
            "is not a multiple of per_device_train_batch_size 8 x 3 processes (= 24).",
        ),
        (
            {"total_batch_size": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            4,
            "64 is not per_device_train_batch_size 2 x gradient_accumulation_steps 4 x 4 processes (= 32). Change it,",
        ),
    ],
)
def test_a_batch_that_cannot_be_met_is_refused_with_the_numbers(values, processes, message):
    with pytest.raises(RecipeError) as caught:
        batch(processes, **values)
    assert message in str(caught.value)
