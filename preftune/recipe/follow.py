"""What a recipe file says about its data and its devices, and no longer holds when the command line names others.

Comes in: the file's layer and the command line's, both in our names. Goes out: the file's layer without what follows
from the other. A published recipe is so started on data of one's own with `dataset=PATH`, and on fewer devices with
`total_batch_size=128`; each change is a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from preftune.data.locate import Place
from preftune.data.mixture import parse_sources, role_of
from preftune.errors import DataError, RecipeError
from preftune.recipe.layers import Layer, Patch

log = logging.getLogger(__name__)

_STRATEGIES = ("eval_strategy", "evaluation_strategy")
_SWITCHES = ("do_eval", "eval_on_start")
EVALUATION = (*_STRATEGIES, *_SWITCHES)
HELD_OUT = ("eval_dataset", "test_split_size")


def follow(file: Layer, last: Layer) -> Layer:
    """The file's layer, as it goes together with `last`."""
    return _follow_batch(_follow_data(file, last), last)


def asks_for_evaluation(values: Mapping[str, Any]) -> bool:
    """Whether a key says that held-out rows are to be evaluated."""
    asked = [values[key] for key in _STRATEGIES if values.get(key) not in (None, False)]
    return any(str(value) != "no" for value in asked) or any(values.get(key) is True for key in _SWITCHES)


def is_local(dataset: object) -> bool:
    """Whether all of it lies on this machine, as files or folders."""
    return bool(_places(dataset)) and all(place.path is not None for place in _places(dataset))


def has_test_split(dataset: object) -> bool:
    """Whether every part of what lies on this machine has a split to evaluate on."""
    return _own_splits(dataset) is not None


def names_test_split(splits: object) -> bool:
    """Whether `dataset_splits` names a split to evaluate on: in a list, or for every source of a map."""
    if isinstance(splits, Mapping) and splits.keys() <= {"train", "test"}:
        return bool(splits.get("test"))
    if isinstance(splits, Mapping):
        return bool(splits) and all(names_test_split(named) for named in splits.values())
    names = [splits] if isinstance(splits, str) else splits if isinstance(splits, list) else []
    return any(role_of(str(name)) == "test" for name in names)


def _places(dataset: object) -> list[Place]:
    """Where the sources are, or nothing where they are written wrongly, which is refused later."""
    try:
        return [Place(source.name, source.path) for source in parse_sources(dataset)]
    except RecipeError:
        return []


def _own_splits(dataset: object) -> list[str] | None:
    """The splits that all parts have and that train and test; None where one of these is missing."""
    try:
        common = [name for name in _split_names(dataset)[0] if all(name in names for names in _split_names(dataset))]
    except (DataError, IndexError):
        return None
    return common if {"train", "test"} <= {role_of(name) for name in common} else None


def _split_names(dataset: object) -> list[list[str]]:
    return [list(place.split_names()) for place in _places(dataset)]


def _follow_data(file: Layer, last: Layer) -> Layer:
    if "dataset" not in file or "dataset" not in last or isinstance(last["dataset"].value, Patch):
        return file
    data, place = last["dataset"].value, last["dataset"].place
    if not is_local(data):  # another set on the hub may well have the same splits
        return file
    own = _own_splits(data)
    named = file.get("dataset_splits")
    if named is not None and isinstance(named.value, list) and own and set(named.value) <= set(own):
        return file
    idle = [key for key in ("dataset_splits", "dataset_configs") if key in file and key not in last]
    if idle:
        log.info("%s: the data is another than that of the file, so its %s is left out.", place, " and ".join(idle))
    followed = {key: given for key, given in file.items() if key not in idle}
    asked = asks_for_evaluation({key: given.value for key, given in file.items()})
    if not asked or any(key in layer for layer in (file, last) for key in HELD_OUT) or last.keys() & {*EVALUATION}:
        return followed
    if own:
        splits = last["dataset"]._replace(value=own, text=None)
        return followed if "dataset_splits" in last else {**followed, "dataset_splits": splits}
    if "dataset_splits" in last:
        return followed
    log.info(
        "%s: the data has no test split, so nothing is evaluated. Name an eval_dataset, or set test_split_size.", place
    )
    return {key: given for key, given in followed.items() if key not in EVALUATION}


def _follow_batch(file: Layer, last: Layer) -> Layer:
    """A global batch that is asked for leaves the accumulation open."""
    steps = "gradient_accumulation_steps"
    if "total_batch_size" not in last or last["total_batch_size"].value is None or steps not in file or steps in last:
        return file
    given = last["total_batch_size"]
    log.info("%s: 'total_batch_size' %s decides, so the file's '%s' is left out.", given.place, given.value, steps)
    return {key: value for key, value in file.items() if key != steps}
