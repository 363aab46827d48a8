"""`load_preferences`: from what a user names as data to examples.

In: a path, a name, a list or a mixture. Out: `Example`s. On the way: where the sources are (`locate`), which split, how
many rows (`mixture`), what their columns mean (`formats`); and a test split held out where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from preftune.data.bad_rows import OnBadRow, SkippedRows
from preftune.data.catalog import CatalogEntry, load_catalog
from preftune.data.columns import ColumnMapping, Columns
from preftune.data.formats import to_examples
from preftune.data.locate import Place, locate
from preftune.data.mixture import MixerOrder, Role, Source, parse_sources, role_of, take_indices
from preftune.data.ranked import RankedPairs
from preftune.data.sources import Row
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Layout

log = logging.getLogger(__name__)


def load_preferences(
    dataset: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    split: str = "train",
    layout: Layout | str = Layout.PAIRED,
    columns: Columns | None = None,
    ranked_pairs: RankedPairs = "best_worst",
    on_bad_row: OnBadRow | None = None,
    skipped: SkippedRows | None = None,
    mappings: dict[str, ColumnMapping] | None = None,
    splits: Sequence[str] | Mapping[str, Any] | None = None,
    configs: Sequence[str | None] | Mapping[str, str] | None = None,
    mixer_order: MixerOrder = "random",
    seed: int = 42,
    test_split_size: float | int | None = None,
    catalog: str | Path | None = None,
) -> list[Example]:
    """Read preference data as examples: one source after the other, or shuffled together if `dataset` is a map.

    Each source is recognised on its own, so files of different forms can stand together. The log says of each what was
    read: its name, its split, and how many of its rows were taken.

    Args:
        dataset: `FILE`, `FOLDER`, `-` (standard input), a name of the catalogue, `owner/name` on the hub, a comma list
            or a list of these, or a map of them to weights (`dataset_mixer`), see `preftune.data.mixture`.
        split: `train`, `test`, or the name of a split. Weights are for training: a test split is read whole.
        layout: what an objective trains on: paired, unpaired, ranked, single or prompt. A file of another form is
            turned into it where that can be done, see `preftune.data.formats.to_examples`.
        columns: the names in the files to known ones (see `preftune.data.formats`); None = ignore the column. It goes
            before what the catalogue says.
        ranked_pairs: of ranked rows read as pairs: `best_worst`, one a row, or `all`.
        on_bad_row: `error` or `skip`; None: as the catalogue has it for the set, else `error`.
        skipped: takes up the count of rows that were left out.
        mappings: takes up what was understood of the columns of each source, by its name.
        splits: which splits stand for train and test (`dataset_splits`): names of which those with `train` in them are
            for training, or a map of sources to such names or to {train: ..., test: ...}.
        configs: the subset of each source, in their order or by name (`dataset_configs`).
        mixer_order: rows of a fraction or a count are drawn by the seed (`random`), or are the first ones (`head`), as
            in the published runs; the order of the whole mixture is theirs too, with seed 42.
        seed: of the drawing, the shuffling and the holding out, at least 0.
        test_split_size: of a source without a test split, the share of examples (below 1) or their number (from 1) that
            train goes without and test consists of. A prompt is never on both sides, so it may come out a little less.
        catalog: a YAML file with more named data sets, see `preftune.data.catalog`.

    Raises:
        DataError: a file or a row is wrong; the message names it.
        RecipeError: an argument is wrong, or the catalogue is.
        MissingExtraError: a .zst file without the zstd extra.
    """
    _check(mixer_order, seed, test_split_size)
    named = load_catalog(catalog)
    examples: list[Example] = []
    for source in parse_sources(dataset, configs, splits):
        places = locate(source, named)
        entry = places[0].entry
        held_out = test_split_size is not None and not _has_test_split(source, places, split)
        from_split = "train" if held_out and role_of(split) == "test" else split
        rows = _load_rows(source, places, from_split, mixer_order, seed)
        if not rows:
            continue
        read = to_examples(
            rows,
            layout,
            columns_of(source, entry, columns, rows),
            ranked_pairs=ranked_pairs,
            on_bad_row=source.on_bad_row or on_bad_row or (entry.on_bad_row if entry else "error"),
            skipped=skipped,
            mappings=mappings,
        )
        if held_out and test_split_size is not None:
            prompts = 2 if Layout(layout) is Layout.UNPAIRED else 1  # KTO compares with another prompt's response
            read = _hold_out(read, test_split_size, seed, source.name, prompts)[role_of(split)]
        examples += read
    if not examples:
        raise DataError(f"'dataset' gives no rows for '{split}'. Raise the weights, or name other data.")
    if isinstance(dataset, Mapping):
        return [examples[index] for index in np.random.default_rng(seed).permutation(len(examples))]
    return examples


def bad_row_rule(
    dataset: str | Path | Sequence[Any] | Mapping[str, Any],
    configs: Sequence[str | None] | Mapping[str, str] | None = None,
    splits: Sequence[str] | Mapping[str, Any] | None = None,
    catalog: str | Path | None = None,
) -> OnBadRow:
    """What is done with bad rows where nobody says it: `skip` if the catalogue has it so for every source."""
    named = load_catalog(catalog)
    rules = set()
    for source in parse_sources(dataset, configs, splits):
        found = named.find(source.name)
        rules.add(source.on_bad_row or (found[0].on_bad_row if found else "error"))
    return "skip" if rules == {"skip"} else "error"


def _check(mixer_order: object, seed: object, test_split_size: object) -> None:
    if mixer_order not in get_args(MixerOrder):
        raise RecipeError(f"'mixer_order' is {mixer_order!r}; expected random or head.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise RecipeError(f"'seed' is {seed!r}; expected a whole number of at least 0.")
    if test_split_size is None:
        return
    share = isinstance(test_split_size, float) and 0 < test_split_size < 1
    count = isinstance(test_split_size, int) and not isinstance(test_split_size, bool) and test_split_size >= 1
    if not share and not count:
        raise RecipeError(
            f"'test_split_size' is {test_split_size!r}; expected a share such as 0.05, or a number of examples."
        )


# --- rows of one source


def _load_rows(source: Source, places: Sequence[Place], split: str, order: MixerOrder, seed: int) -> list[Row]:
    """The rows of every subset and split that was asked for; what is taken of them, and the log of it.

    A fraction is taken of each split by itself, as published; a count of all rows together.
    """
    parts = [
        (place.describe(name), _without_excluded(place, name))
        for place in places
        for name in wanted_splits(source, place, split)
    ]
    weight = source.weight if role_of(split) == "train" else 1.0
    amount = weight if source.count is None else source.count
    if isinstance(amount, int) and len(parts) > 1:
        parts = [(f"{parts[0][0]} and {len(parts) - 1} more", [row for _, rows in parts for row in rows])]
    return [row for shown, rows in parts for row in _take(shown, rows, amount, order, seed)]


def _take(shown: str, rows: Sequence[Row], amount: float | int, order: MixerOrder, seed: int) -> list[Row]:
    if not rows or (amount == 1.0 and isinstance(amount, float)):
        log.info("%s: %d rows", shown, len(rows))
        return list(rows)
    taken = [rows[index] for index in take_indices(len(rows), amount, order, seed)]
    if amount and not taken:
        raise DataError(f"{shown}: a fraction of {amount:g} of {len(rows)} rows is none. Raise it, or remove the set.")
    how = "from the start" if order == "head" else f"drawn with seed {seed}"
    what = f"{amount} rows" if isinstance(amount, int) else f"a fraction of {amount:g}"
    log.info("%s: %d of %d rows (%s, %s)", shown, len(taken), len(rows), what, how)
    if len(taken) > len(rows):
        log.warning("%s: there are only %d rows for %s, so rows are read more than once", shown, len(rows), what)
    return taken


def wanted_splits(source: Source, place: Place, split: str) -> tuple[str, ...]:
    """The names of the splits to read; one body of rows is read once, whatever splits are named."""
    if source.splits is None or split not in ("train", "test"):
        return (place.wanted_split(split),)
    names = source.splits.get(role_of(split), ())
    if not names:
        raise DataError(f"{source.name}: none of its splits in 'dataset_splits' is for {split}. Name one.")
    if place.is_one_body and split == "test":
        raise DataError(
            f"{source.name}: it is one body of rows and has no split '{names[0]}'. "
            "Set test_split_size, or name an eval_dataset."
        )
    return names[:1] if place.is_one_body else names


def _has_test_split(source: Source, places: Sequence[Place], split: str) -> bool:
    if source.splits is not None:
        return bool(source.splits.get("test")) and not any(place.is_one_body for place in places)
    return all(place.has_split(split if role_of(split) == "test" else "test") for place in places)


def _without_excluded(place: Place, split: str) -> list[Row]:
    """The rows of a split, but for those that the catalogue leaves out."""
    rows = place.load_rows(split)
    excluded = place.entry.exclude if place.entry else {}
    kept = [row for row in rows if not any(row.values.get(name) in values for name, values in excluded.items())]
    if len(kept) < len(rows):
        log.info("%s: %d rows left out, as the catalogue has it", place.describe(split), len(rows) - len(kept))
    return kept


def columns_of(
    source: Source, entry: CatalogEntry | None, columns: Columns | None, rows: Sequence[Row]
) -> Columns | None:
    """The user's columns over those of the catalogue, of which only what the rows have."""
    own = source.columns if source.columns is not None else columns
    if entry is None or not entry.columns:
        return own
    found = {name for row in rows for name in row.values}
    return {name: role for name, role in entry.columns.items() if name in found} | dict(own or {})


# --- a test split where there is none


def _hold_out(
    examples: Sequence[Example], size: float | int, seed: int, name: str, prompts: int = 1
) -> dict[Role, list[Example]]:
    """The examples for training and at most `size` held out for testing: whole prompts, drawn by the seed.

    A share that is less than one prompt (or `prompts` of them) is that many.
    """
    wanted = size if isinstance(size, int) else round(size * len(examples))
    by_prompt: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        by_prompt.setdefault(example.prompt, []).append(index)
    groups = list(by_prompt.values())
    if isinstance(size, float):
        wanted = max(wanted, sum(sorted(map(len, groups))[:prompts]))
    held: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if len(held) + len(groups[number]) <= wanted:
            held.update(groups[number])
    if not held or len(held) == len(examples):
        raise DataError(
            f"{name}: test_split_size {size:g} holds out {len(held)} of {len(examples)} examples ({len(groups)} "
            "prompts). Choose another, or name an eval_dataset."
        )
    log.info("%s: no test split, so %d of %d examples are held out (seed %d)", name, len(held), len(examples), seed)
    return {
        "train": [example for index, example in enumerate(examples) if index not in held],
        "test": [example for index, example in enumerate(examples) if index in held],
    }
