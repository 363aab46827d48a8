"""What the page may read: models, runs and data files below the folders of the command line.

A request names a place by the name it was listed under, never by a path, so there is nothing to climb out of. Links
that lead out of a folder are not listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from preftune.data.sources import NOT_ROWS, to_file_kind
from preftune.errors import DataError, ModelError
from preftune.train.checkpoint import LOG, NAME

DEEPEST, MOST = 4, 2000  # folders below a given one; places of a kind
OWN = {LOG, "watch.jsonl", "summary.json", "export.json", "config.json", "trainer_state.json"}  # a run's own files
MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Places:
    """The folders and names that were given.

    Args:
        runs: run folders lie below it; trainings that are started here are put there.
        data: files of rows, or folders with them.
        models: as `preftune chat` takes them; shown first.
        votes: the file that votes are added to.
    """

    runs: Path
    data: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    votes: Path = Path("votes.jsonl")

    def run_folders(self) -> dict[str, Path]:
        """Name (relative to `runs`) to folder, the newest first."""
        found = [path for path, files in _walk(self.runs) if LOG in files or "recipe.yaml" in files]
        found = [path for path in found if path != self.runs]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return {str(path.relative_to(self.runs)): path for path in found[:MOST]}

    def find_run(self, name: str) -> Path:
        """
        Raises:
            DataError: there is no such run.
        """
        if name not in (runs := self.run_folders()):
            raise DataError(f"There is no run '{name}' below '{self.runs}'. Load the list again.")
        return runs[name]

    def model_names(self) -> list[str]:
        """Names of models: those given, what they were trained from, and what lies below `runs`."""
        below = []
        for run in self.run_folders().values():
            below += [str(run)] if _holds_model(run) else []
            below += [str(path) for path in _checkpoints(run)]
        names = [*self.models, *(start for name in self.models for start in started_from(name)), *below]
        return list({_identity(name): name for name in reversed(names)}.values())[::-1]

    def pair(self) -> list[str]:
        """The models that stand side by side at first: before and after."""
        if len(self.models) >= 2:
            return list(self.models[:2])
        for name in self.models or self.model_names():
            if start := started_from(name):
                return [start[0], name]
        return self.model_names()[:2]

    def find_model(self, name: str) -> str:
        """
        Raises:
            ModelError: there is no such model.
        """
        if name not in self.model_names():
            raise ModelError(f"The model '{name}' is none of the list. Give it to 'preftune web' when it starts.")
        return name

    def data_files(self) -> dict[str, Path]:
        """Name to file; the votes are among them once there are some."""
        found: list[Path] = [self.votes] if self.votes.is_file() else []
        for given in self.data:
            if given.is_file():
                found.append(given)
            for folder, files in _walk(given):
                found += [folder / name for name in sorted(files) if _is_data(folder, name, given)]
        return {str(path): path for path in found[:MOST]}

    def find_data(self, name: str) -> Path:
        """
        Raises:
            DataError: there is no such file.
        """
        if name not in (files := self.data_files()):
            raise DataError(f"The file '{name}' is none of the list. Give its folder as --data when the page starts.")
        return files[name]


def inside(folder: Path, name: str) -> Path | None:
    """A file of a folder; None where there is none, or a link that leads out of it."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def started_from(name: str) -> list[str]:
    """The model that a run began with, where it is a folder of this machine."""
    recipe = inside(Path(name).expanduser(), "recipe.yaml")
    if recipe is None:
        return []
    try:
        said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return []
    start = said.get("model_name_or_path") if isinstance(said, dict) else None
    return [start] if isinstance(start, str) and _holds_model(Path(start)) else []


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders below `top`, itself first, with the names of their files; hidden ones and checkpoints are left out."""
    for folder, folders, files in os.walk(top):
        deep = len(Path(folder).relative_to(top).parts)
        kept = [name for name in folders if not name.startswith((".", "earlier-")) and not NAME.fullmatch(name)]
        folders[:] = sorted(kept) if deep < DEEPEST else []
        yield Path(folder), set(files)


def _is_data(folder: Path, name: str, given: Path) -> bool:
    path = folder / name
    if name in NOT_ROWS | OWN or name.startswith((".", "tokenizer", "special_tokens", "generation_config")):
        return False
    return to_file_kind(path) is not None and path.resolve().is_relative_to(given.resolve())


def _checkpoints(run: Path) -> list[Path]:
    found = [path for path in run.iterdir() if NAME.fullmatch(path.name) and _holds_model(path)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MODEL_FILES)


def _identity(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
