"""Named data sets: where they are, their splits, and which of their columns is what.

In: `catalog.yaml` beside this file, the file that PREFTUNE_CATALOG names, and the one that is given; a later entry
replaces an earlier one of the same name. A JSON file in the form of ms-swift's `--custom_dataset_info` is understood
too: hf_dataset_id and dataset_id are read as hub, dataset_path as path, split and columns as here. Out: `CatalogEntry`.
An entry in YAML, with every key it may have:

    my-pairs:
      hub: owner/my-pairs                 # its name on the hub; without it, a local copy is needed
      path: pairs.jsonl                   # a local copy, beside this file or from the current folder
      aliases: [pairs, other/name]        # other names for the same
      subsets: [easy, hard]               # my-pairs:easy, and my-pairs-easy as an alias
      default_subset: easy                # when none is named; without it, the whole
      files: "{subset}/{split}.jsonl.gz"  # a subset is files of the repository, not a configuration of the hub
      splits: {train: train_prefs, test: test_prefs}   # no `test`: it has none
      columns: {question: prompt, answer: chosen}      # those that a copy does not have are left out
      exclude: {source: [bad-part]}       # rows that are left out, by the values of a column
      layout: paired                      # the layout it was made for
      on_bad_row: skip                    # it is known to hold bad rows
      notes: where the facts are from
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from preftune.data.bad_rows import OnBadRow
from preftune.data.columns import Columns, nearest
from preftune.data.names import KNOWN_COLUMNS
from preftune.data.sources import describe
from preftune.errors import RecipeError
from preftune.types import Layout

CATALOG_VARIABLE = "PREFTUNE_CATALOG"
PUBLISHED = Path(__file__).with_name("catalog.yaml")


@dataclass(frozen=True)
class CatalogEntry:
    """One named data set; the fields are the keys of its YAML entry, see the module."""

    name: str
    hub: str | None = None
    path: Path | None = None
    aliases: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    default_subset: str | None = None
    files: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train"})
    columns: Columns = field(default_factory=dict)
    exclude: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layout: Layout = Layout.PAIRED
    on_bad_row: OnBadRow = "error"
    notes: str = ""

    @property
    def names(self) -> dict[str, str | None]:
        """Every name the set goes by, to the subset that the name means."""
        names: dict[str, str | None] = dict.fromkeys((self.name, *self.aliases, *([self.hub] if self.hub else [])))
        return names | {f"{self.name}-{subset.replace('_', '-')}": subset for subset in self.subsets}


class Catalog:
    """The entries, found by any of their names, whatever the case of the letters."""

    def __init__(self, entries: Mapping[str, CatalogEntry]) -> None:
        self.entries = dict(entries)
        self._names = {
            alias.lower(): (entry, subset) for entry in self.entries.values() for alias, subset in entry.names.items()
        }

    def find(self, name: str) -> tuple[CatalogEntry, str | None] | None:
        """The entry of that name, and the subset that the name itself means."""
        return self._names.get(name.lower())

    def nearest(self, name: str) -> str:
        return nearest(name.lower(), self._names)


def load_catalog(file: str | Path | None = None) -> Catalog:
    """The published entries, those of the file in PREFTUNE_CATALOG, and those of `file`.

    Raises:
        RecipeError: a file or an entry is wrong.
    """
    named = os.environ.get(CATALOG_VARIABLE)
    files = [PUBLISHED, *([Path(named)] if named else []), *([Path(file)] if file else [])]
    return Catalog({name: entry for path in files for name, entry in _read_entries(path).items()})


def _read_entries(path: Path) -> dict[str, CatalogEntry]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: the catalogue cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{path}: the catalogue is not sound YAML ({problem}). Correct it there.") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected a map of names to entries, found {describe(values)}. Write NAME: {{...}}.")
    return {str(name): _to_entry(str(name), value, path) for name, value in values.items()}


KINDS: dict[str, tuple[type, str]] = {
    "hub": (str, "text"),
    "path": (str, "text"),
    "aliases": (list, "a list"),
    "subsets": (list, "a list"),
    "default_subset": (str, "text"),
    "files": (str, "text"),
    "splits": (dict, "a map"),
    "columns": (dict, "a map"),
    "exclude": (dict, "a map"),
    "layout": (str, "text"),
    "on_bad_row": (str, "text"),
    "notes": (str, "text"),
}


def _to_entry(name: str, values: object, path: Path) -> CatalogEntry:
    where = f"{path}: catalogue entry '{name}'"
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is {describe(values)}; expected a map such as {{hub: owner/name}}.")
    values = _from_custom_info(values, where)
    for key, value in values.items():
        if key not in KINDS:
            near = nearest(str(key), KINDS)
            raise RecipeError(f"{where} has the key '{key}', which is not known{near}. Known: {', '.join(KINDS)}.")
        kind, expected = KINDS[key]
        if not isinstance(value, kind):
            raise RecipeError(f"{where}: '{key}' is {describe(value)}; expected {expected}. Correct it.")
    given = values | {key: tuple(map(str, values[key])) for key in ("aliases", "subsets") if key in values}
    if "exclude" in given:
        listed = {key: value if isinstance(value, list) else [value] for key, value in given["exclude"].items()}
        given["exclude"] = {key: tuple(value) for key, value in listed.items()}
    if "path" in given:
        given["path"] = _local(given["path"], path, where)
    _check_choices(given, where)
    if "layout" in given:
        given["layout"] = Layout(given["layout"])
    return CatalogEntry(name, **given)


def _local(text: str, catalog: Path, where: str) -> Path:
    """The file or folder that an entry names, beside the catalogue or from the current folder."""
    named = Path(text).expanduser()
    for place in (catalog.parent / named, named):
        if place.exists():
            return place
    raise RecipeError(f"{where}: 'path' names '{text}', which does not exist. Correct it, or leave it out.")


def _from_custom_info(values: dict[str, Any], where: str) -> dict[str, Any]:
    """An entry of ms-swift's custom_dataset_info as one of ours; what is one already, as it is."""
    given = {
        key: value for key, value in values.items() if value is not None and key not in ("tags", "help", "huge_dataset")
    }
    ids = [given.pop(key) for key in ("hf_dataset_id", "dataset_id") if key in given]
    if ids:
        given.setdefault("hub", ids[0])
        given["aliases"] = [*given.get("aliases", []), *(name for name in ids[1:] if name != ids[0])]
    if "dataset_path" in given:
        given.setdefault("path", given.pop("dataset_path"))
    if "split" in given:
        named = given.pop("split")
        names = [named] if isinstance(named, str) else list(named)
        given["splits"] = dict(zip(("train", "test"), names, strict=False))
    if isinstance(given.get("subsets"), list) and given["subsets"] and "default_subset" not in given and ids:
        given["default_subset"] = str(given["subsets"][0])
    return _conversations(given, where)


def _conversations(given: dict[str, Any], where: str) -> dict[str, Any]:
    if "conversations" not in given:
        return given
    said = given.pop("conversations")
    column = said.pop("conversations_key", "conversations") if isinstance(said, dict) else None
    usual = {"user_role": "user", "assistant_role": "assistant", "system_role": "system"}
    names = {"from_key": ("from", "role"), "value_key": ("value", "content"), "error_strategy": ("ignore", "delete")}
    for key, value in said.items() if isinstance(said, dict) else []:
        if value is not None and value not in (usual.get(key), *names.get(key, ()), "human", "gpt"):
            raise RecipeError(
                f"{where}: 'conversations.{key}' {value!r} is not supported; turns are {{from, value}} or "
                "{role, content} of user (human), assistant (gpt) and system. Rename them in the file."
            )
    if column and column != "conversations":
        given["columns"] = {**given.get("columns", {}), column: "conversations"}
    return given


def _check_choices(given: Mapping[str, Any], where: str) -> None:
    """What may not be just any text."""
    for key, choices in (("layout", tuple(Layout)), ("on_bad_row", get_args(OnBadRow))):
        if given.get(key, choices[0]) not in choices:
            raise RecipeError(f"{where}: '{key}' is '{given[key]}'; expected one of {', '.join(choices)}. Correct it.")
    splits = given.get("splits", {"train": "train"})
    if "train" not in splits or not all(isinstance(split, str) for split in splits.values()):
        raise RecipeError(f"{where}: 'splits' is {dict(splits)}; expected names, as {{train: train, test: test}}.")
    for theirs, ours in given.get("columns", {}).items():
        if ours is not None and ours not in KNOWN_COLUMNS:
            near = nearest(str(ours), KNOWN_COLUMNS)
            raise RecipeError(f"{where}: 'columns' maps '{theirs}' to {ours!r}, which is not known{near}. Correct it.")
    if given.get("default_subset") not in (None, *given.get("subsets", ())):
        raise RecipeError(f"{where}: 'default_subset' is not one of 'subsets'. Add it there.")
    try:
        given.get("files", "").format(subset="", split="")
    except (LookupError, ValueError) as error:
        raise RecipeError(f"{where}: 'files' may hold {{subset}} and {{split}}, found '{given['files']}'.") from error
