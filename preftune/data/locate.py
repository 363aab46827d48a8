"""From a source to where its rows are: a path, a local copy of a named set, or the hub.

In: a `Source` and the catalogue. Out: the `Place`s to read, one a subset. Looked for in this order: the path that was
given, the catalogue's set under the folder of PREFTUNE_DATA_ROOT (by any of its names, as a folder or a data file), and
the hub, or ModelScope for a name with the prefix MS::. Local copies, and what ModelScope gave, are never refused for
not being laid out as on the hub: what is there is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.data.catalog import Catalog, CatalogEntry
from preftune.data.hub import load_hub_files, load_hub_rows, load_hub_split_names
from preftune.data.mixture import Source
from preftune.data.sources import Row, load_rows, load_split_names, name_list, to_file_kind, to_stem
from preftune.errors import DataError, MissingExtraError, RecipeError

log = logging.getLogger(__name__)

DATA_ROOT_VARIABLE = "PREFTUNE_DATA_ROOT"


@dataclass(frozen=True)
class Place:
    """Where the rows of a source, or of one subset of it, are.

    Args:
        name: on the hub, or as it was written.
        path: a file or folder; None: the hub.
        subset: a configuration on the hub, or a part of a folder.
        entry: what the catalogue knows.
    """

    name: str
    path: Path | None
    subset: str | None = None
    entry: CatalogEntry | None = None

    def describe(self, split: str) -> str:
        """`NAME:SUBSET[SPLIT]`, and where it lies if that is another thing."""
        shown = f"{self.name}{':' + self.subset if self.subset else ''}[{split}]"
        return shown if self.path is None or self.path == Path(self.name) else f"{shown} at {self.path}"

    @property
    def is_one_body(self) -> bool:
        """Whether it is a file or standard input, which has no splits."""
        return self.path is not None and not self.path.is_dir()

    def split_names(self) -> Sequence[str]:
        """The splits there; none of one body of rows."""
        if self.is_one_body:
            return ()
        if self.path is not None:
            return load_split_names(self.path, self.subset)
        if self.entry is not None:
            return tuple(self.entry.splits.values())
        return load_hub_split_names(self.name, self.subset)

    def wanted_split(self, split: str) -> str:
        """The split's name here: the catalogue's for train and test; of a local copy the first that it has of that,
        the split as it was asked for, and `validation` for test.
        """
        named = self.entry.splits.get(split, split) if self.entry else split
        if self.path is None or self.is_one_body:
            return named
        there = self.split_names()
        options = (named, split, *(["validation"] if split == "test" else []))
        return next((option for option in options if option in there), named)

    def has_split(self, split: str) -> bool:
        return self.wanted_split(split) in self.split_names()

    def load_rows(self, split: str) -> list[Row]:
        if self.path is not None:
            return load_rows(self.path, split, self.subset)
        if self.entry is not None and self.entry.files and self.subset:
            return load_hub_files(self.name, self.entry.files.format(subset=self.subset, split=split), split)
        return load_hub_rows(self.name, self.subset, split, catalogued=self.entry is not None)


def locate(source: Source, catalog: Catalog) -> list[Place]:
    """The places that hold a source, one for each subset that was named.

    Raises:
        DataError: there is nothing of that name.
        MissingExtraError: a set of ModelScope that is not known to be on the hub, without the extra `modelscope`.
        RecipeError: a subset that the catalogue does not know, or a local copy of a set that it does not know.
    """
    found = catalog.find(source.name)
    entry, implied = found if found else (None, None)
    if source.path is not None and source.path != Path(source.name) and entry is None:
        raise RecipeError(
            f"'{source.name}={source.path}': no data set of the catalogue is called '{source.name}'"
            f"{catalog.nearest(source.name)}. Correct it, or name the path alone."
        )
    if entry is None and source.subsets and source.path is not None and not source.path.is_dir():
        raise RecipeError(f"'{source.name}' is one file and has no subset '{source.subsets[0]}'. Leave it out.")
    subsets = _subsets(source, entry, implied)
    own = entry.path if entry and source.registry is None else None
    path = source.path or own or (_local_copy(source, entry) if entry and source.registry != "HF" else None)
    if path is None and source.registry == "MS" and implied is None and "/" in source.name:
        path = _from_modelscope(source.name, entry)
    if path is not None:
        if not (source.subsets or implied) and subsets[0] and next(path.rglob(subsets[0]), None) is None:
            subsets = [None]  # nobody asked for the default subset, and the copy is not divided
        return [Place(source.name, path, subset, entry) for subset in subsets]
    if _is_path(source):
        load_rows(source.name)  # refuses it, and says what stands beside
    if entry is None and "/" not in source.name and source.registry is None:
        raise DataError(
            f"{source.name}: there is no such file or folder, and no such name in the catalogue"
            f"{catalog.nearest(source.name)}. Correct it; a name on the hub is written owner/name."
        )
    hub = entry.hub if entry else source.name
    if hub is None:
        raise DataError(f"{source.name}: its entry names no hub. Download it and name the file or folder instead.")
    if source.registry == "MS" and entry is None:
        raise DataError(f"MS::{source.name}: a data set of ModelScope is written MS::owner/name. Add its owner.")
    if source.registry == "MS":
        log.info("%s: ModelScope is not asked; %s on the hub is the same set", source.name, hub)
    return [Place(hub, None, subset, entry) for subset in subsets]


def _subsets(source: Source, entry: CatalogEntry | None, implied: str | None) -> list[str | None]:
    named = [part for text in source.subsets for part in text.split("/")] or ([implied] if implied else [])
    if entry is None:
        return list(named) or [None]
    for subset in named:
        if entry.subsets and subset not in entry.subsets:
            known = name_list(entry.subsets)
            raise RecipeError(f"'{source.name}' has no subset '{subset}'. The catalogue knows: {known}.")
    return list(named) or [entry.default_subset]


def _is_path(source: Source) -> bool:
    """Whether a name that does not exist was meant as a path."""
    if source.registry is not None:
        return False
    name = source.name
    return bool(re.match(r"[./~]", name)) or name.count("/") > 1 or "\\" in name or to_file_kind(Path(name)) is not None


def _from_modelscope(name: str, entry: CatalogEntry | None) -> Path | None:
    """The folder of a data set of ModelScope; None: the package is missing, and the hub has the same set."""
    try:
        from preftune.data.modelscope_hub import fetch_modelscope_folder
    except ImportError as error:
        if entry and entry.hub:
            log.info("%s: the extra 'modelscope' is not installed", name)
            return None
        raise MissingExtraError(f"MS::{name}", "modelscope") from error
    copy = f"name a local copy: {name}=PATH" if entry else "download it and name the folder instead"
    return fetch_modelscope_folder(name, f"Check the name and the network, or {copy}")


def _local_copy(source: Source, entry: CatalogEntry) -> Path | None:
    """The set under the data root, if there is one and the set is in it."""
    root = os.environ.get(DATA_ROOT_VARIABLE)
    if not root:
        return None
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{root}: there is no such folder, and {DATA_ROOT_VARIABLE} names it. Correct or unset it.")
    names = [name for name, subset in entry.names.items() if subset is None]
    for name in dict.fromkeys([source.name, *names, *(name.split("/")[-1] for name in names)]):
        wanted = folder / name
        if wanted.is_dir():
            return wanted
        beside = sorted(wanted.parent.iterdir()) if wanted.parent.is_dir() else []
        file = next((file for file in beside if to_file_kind(file) and to_stem(file) == wanted.name), None)
        if file is not None:
            return file
    return None
