"""What a user names as data, as a list of sources; and how many rows of each are taken.

In: a path or name, a comma list, a list, or a map of names to weights (`dataset_mixer`). Out: `Source`s. One is written

    [HF::|MS::]NAME[:SUBSET[/SUBSET]][=PATH][#COUNT]

where NAME is a file, a folder, `-` for standard input, a name of the catalogue or `owner/name` on the hub. What exists
as a file or folder is one, whatever characters its name holds.

The weights are those of `dataset_mixer` in the SimPO repository (alignment-handbook): the fraction of a set's rows that
is trained on. Departures: rows are drawn by a seed unless `mixer_order` is `head`; a fraction belongs to its data set
and never to a split; a weight over 1 repeats rows; a whole number over 1 is a count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from preftune.data.bad_rows import OnBadRow
from preftune.data.columns import Columns, nearest
from preftune.data.sources import STDIN, VALIDATION_NAMES, describe
from preftune.errors import RecipeError

MixerOrder = Literal["random", "head"]
Role = Literal["train", "test"]
Registry = Literal["HF", "MS"]
Splits = Mapping[Role, tuple[str, ...]]
SOURCE_KEYS = ("id", "weight", "config", "split", "columns", "on_bad_row")
MOST_REPETITIONS = 100  # a weight above it is a count that was written with a point


@dataclass(frozen=True)
class Source:
    """One data set as it was asked for.

    Args:
        name: as it was written, without what follows.
        path: a file or folder to read instead of what the name stands for.
        registry: the prefix HF:: or MS::, which keeps a name from being a path.
        subsets: configurations of a hub set, or parts of a folder; none = the whole.
        count: rows that are taken of whatever split is read (`#N`).
        weight: what is taken for training: a fraction (over 1: with repetition), or a count.
        splits: the names of its splits for training and for testing; None = not said.
        columns, on_bad_row: of this source alone; None = as for all.
    """

    name: str
    path: Path | None = None
    registry: Registry | None = None
    subsets: tuple[str, ...] = ()
    count: int | None = None
    weight: float | int = 1.0
    splits: Splits | None = None
    columns: Columns | None = None
    on_bad_row: OnBadRow | None = None


def parse_sources(dataset: object, configs: object = None, splits: object = None) -> list[Source]:
    """The sources that `dataset` names, in its order.

    Args:
        dataset: a path or name, a comma list of them, a list of such (or of maps with the keys of `SOURCE_KEYS`, `id`
            being the name), or a map of names to a weight or to such a map.
        configs: a subset for each source: a list in their order, or a map by name.
        splits: names of splits: a list for all sources, or a map by name.

    Raises:
        RecipeError: it is written wrongly; the message says where.
    """
    sources = [source for item in _items(dataset) for source in _sources_of(*item)]
    if not sources:
        raise RecipeError("'dataset' is empty; expected at least one file, folder or name. Add one.")
    names = [source.name for source in sources]
    chosen = _by_source(configs, names, "dataset_configs")
    asked = _by_source(splits, names, "dataset_splits", shared=True)
    return [
        replace(_with_subset(source, subset), splits=source.splits or _to_splits(named, source.name))
        for source, subset, named in zip(sources, chosen, asked, strict=True)
    ]


def role_of(split: str) -> Role:
    """What a split is for, by its name: those with `train` in it train, those of test and validation test."""
    words = re.split(r"[^a-z0-9]+", split.lower())
    return "test" if "train" not in split.lower() and VALIDATION_NAMES.union(["test"]) & {*words} else "train"


def take_indices(total: int, amount: float | int, order: MixerOrder, seed: int) -> list[int]:
    """Which of `total` rows are taken, in ascending order; after the first `total`, again from the start.

    Args:
        amount: a fraction (int(fraction * total) rows), or a count of rows.
        order: `random` draws by `seed`; `head` takes the first.
    """
    wanted = amount if isinstance(amount, int) else int(amount * total)
    whole, rest = divmod(wanted, total)
    if order == "head":
        some = list(range(rest))
    else:
        some = sorted(np.random.default_rng(seed).choice(total, rest, replace=False).tolist())
    return list(range(total)) * whole + some


# --- how sources are written


def _items(dataset: object) -> list[tuple[object, object]]:
    """(name, weight or settings) of each part of the argument."""
    if isinstance(dataset, Mapping):
        return list(dataset.items())
    parts = [dataset] if isinstance(dataset, str | Path) else dataset
    if not isinstance(parts, Sequence):
        raise RecipeError(f"'dataset' is {describe(dataset)}; expected a path, a name, a list, or a map of weights.")
    return [(part.get("id"), part) if isinstance(part, Mapping) else (part, None) for part in parts]


def _sources_of(name: object, value: object) -> list[Source]:
    if isinstance(name, Path):
        sources = [Source(str(name), path=name)]
    elif isinstance(name, str) and name.strip():
        sources = [_parse(part.strip()) for part in _comma_list(name)]
    else:
        raise RecipeError(f"'dataset' names {describe(name)}; expected a path or a name. Put it in quotes.")
    if value is None:
        return sources
    if len(sources) > 1:
        raise RecipeError(f"'dataset' gives one weight to '{name}'. Give each data set a line of its own.")
    return [_with_settings(sources[0], value)]


def _comma_list(text: str) -> list[str]:
    parts = [text] if _exists(text) else text.split(",")
    if not all(part.strip() for part in parts):
        raise RecipeError(f"'dataset' has an empty place in its comma list ('{text}'). Remove the comma too many.")
    return parts


def _parse(text: str) -> Source:
    if re.match("~[/\\\\]", text):
        text = str(Path.home()) + text[1:]
    if text == STDIN or _exists(text):
        return Source(text, path=Path(text))
    count = re.fullmatch(r"(.+)#(\d+)", text)
    if count:
        if int(count[2]) < 1:
            raise RecipeError(f"'dataset' asks for no rows ('{text}'). Write a number over 0 after the #.")
        return replace(_parse(count[1]), count=int(count[2]))
    prefix = re.match(r"(HF|MS)::", text)
    registry: Registry | None = None
    if prefix:
        text, registry = text[prefix.end() :], "HF" if prefix[1] == "HF" else "MS"
    name, _, path = text.partition("=")
    name, _, subsets = name.partition(":")
    return Source(
        name,
        path=Path(path).expanduser() if path else Path(name) if _exists(name) and not registry else None,
        registry=registry,
        subsets=(subsets,) if subsets else (),
    )


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


# --- weights and settings


def _with_subset(source: Source, subset: object) -> Source:
    if subset is None:
        return source
    if source.subsets:
        raise RecipeError(f"'{source.name}' is given a subset twice ({source.subsets[0]}, {subset}). Keep one.")
    return replace(source, subsets=(str(subset),))


def _with_settings(source: Source, value: object) -> Source:
    settings: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"weight": value}
    for key in settings:
        if key not in SOURCE_KEYS:
            near = nearest(str(key), SOURCE_KEYS)
            raise RecipeError(
                f"'dataset' gives '{source.name}' the key '{key}', which is not known{near}. "
                f"Known: {', '.join(SOURCE_KEYS)}."
            )
    columns, on_bad_row = settings.get("columns"), settings.get("on_bad_row")
    if on_bad_row not in (None, *get_args(OnBadRow)):
        raise RecipeError(f"'dataset' gives '{source.name}' on_bad_row: {on_bad_row}; expected error or skip.")
    if columns is not None and not isinstance(columns, Mapping):
        raise RecipeError(f"'dataset' gives '{source.name}' columns: {columns}; expected a map {{theirs: ours}}.")
    return replace(
        _with_subset(source, settings.get("config")),
        weight=_checked_weight(settings.get("weight", 1.0), source),
        splits=_to_splits(settings.get("split"), source.name),
        columns=columns,
        on_bad_row=on_bad_row,
    )


def _checked_weight(weight: object, source: Source) -> float | int:
    where = f"the weight of '{source.name}' is"
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise RecipeError(f"{where} {weight!r}; expected a fraction such as 0.5, or a count of rows such as 5000.")
    if isinstance(weight, float) and weight > MOST_REPETITIONS:
        raise RecipeError(f"{where} {weight:g}, so each row would be read as often. For a count write {int(weight)}.")
    if source.count is not None and weight != 1:
        raise RecipeError(f"{where} {weight:g}, and '#{source.count}' is a count. Keep one of them.")
    return float(weight) if weight in (0, 1) else weight


def _to_splits(value: Any, name: str) -> Splits | None:
    """Names of splits by their role: given as such, or told from the names."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        by_role = dict(value)
    else:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not all(isinstance(split, str) for split in names):
            raise RecipeError(f"the splits of '{name}' are {describe(value)}; expected names such as [train, test].")
        by_role = {role: [split for split in names if role_of(split) == role] for role in get_args(Role)}
    unknown = by_role.keys() - set(get_args(Role))
    if unknown:
        raise RecipeError(f"the splits of '{name}' have the key '{min(map(str, unknown))}'; expected train and test.")
    return {role: (named,) if isinstance(named, str) else tuple(named) for role, named in by_role.items() if named}


def _by_source(value: object, names: Sequence[str], key: str, *, shared: bool = False) -> list[Any]:
    """The part of a setting that is each source's: from a map by name, or a list (for all, if `shared`)."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                near = nearest(str(name), names)
                raise RecipeError(f"'{key}' names '{name}', which 'dataset' does not{near}. Correct the name.")
        return [value.get(name) for name in names]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence):
        raise RecipeError(f"'{key}' is {describe(value)}; expected a list, or a map by the names in 'dataset'.")
    if shared:
        return [values] * len(names)
    if len(values) != len(names):
        raise RecipeError(
            f"'{key}' has {len(values)} entries for {len(names)} data sets. Give one a data set, or null."
        )
    return list(values)
