"""Where pairs are written: a folder with train, test and pairs-report.json, or one file with FILE.report beside it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from preftune.data.sources import PAIRS_REPORT
from preftune.errors import DataError, RecipeError

Format = Literal["jsonl", "parquet", "save_to_disk"]
Rows = Sequence[Mapping[str, Any]]
OURS = {
    PAIRS_REPORT, "dataset_dict.json", "train", "test",
    *(f"{part}.{kind}" for part in ("train", "test") for kind in ("jsonl", "parquet")),
}  # fmt: skip


class PairFiles:
    """The files under one output, checked before any work is done.

    Raises:
        DataError: it cannot be written, or holds files that are not of an earlier call.
        RecipeError: the format is not known.
    """

    def __init__(self, output: Path, format: Format) -> None:
        if format not in get_args(Format):
            raise RecipeError(f"'format' is {format!r}; expected one of {', '.join(get_args(Format))}.")
        self.single = output.suffix in (".jsonl", ".parquet")
        self.output, self.format = output, format
        if self.single:
            kind = output.suffix[1:]
            if format not in ("jsonl", kind):  # jsonl is the default, which a name overrides
                raise RecipeError(f"{output}: its name says {kind}, the format is {format}. Correct one of them.")
            self.format = "parquet" if kind == "parquet" else "jsonl"
        self._check()

    def write(self, parts: Mapping[str, Rows], report: Mapping[str, Any]) -> None:
        """Write all parts and the report; files of an earlier call are replaced.

        All of it or nothing: it is written in a new folder beside its place, and then takes it.
        """
        try:
            with tempfile.TemporaryDirectory(prefix=f".{self.output.name}.", dir=self.output.parent) as work:
                if self.single:
                    self._write_single(Path(work), [row for rows in parts.values() for row in rows], report)
                else:
                    self._write_folder(Path(work), parts, report)
        except OSError as error:
            raise DataError(
                f"{self.output}: cannot be written ({error.strerror or error}). Give another place."
            ) from None

    def _write_single(self, work: Path, rows: Rows, report: Mapping[str, Any]) -> None:
        """The report goes first: a table without one would be taken for somebody's own."""
        self._write_table(work / "table", rows)
        _write_report(work / "report", report)
        (work / "report").replace(_report_of(self.output))
        (work / "table").replace(self.output)

    def _write_folder(self, work: Path, parts: Mapping[str, Rows], report: Mapping[str, Any]) -> None:
        new, old = work / "new", work / "old"
        new.mkdir()  # with the usual rights; `work` is for its owner alone
        if self.format == "save_to_disk":
            _save_to_disk(new, parts)
        else:
            for name, rows in parts.items():
                self._write_table(new / f"{name}.{self.format}", rows)
        _write_report(new / PAIRS_REPORT, report)
        try:
            if self.output.exists():
                self.output.replace(old)
            new.replace(self.output)
        except BaseException:
            if old.exists() and not self.output.exists():
                old.replace(self.output)
            raise

    def _check(self) -> None:
        parent = self.output.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK) or (self.single and self.output.is_dir()):
            raise DataError(f"{self.output}: cannot be written there. Give a place in a folder that can be written to.")
        if self.single:
            self._check_single()
        if self.single or not self.output.exists():
            return
        if not self.output.is_dir():
            raise DataError(f"{self.output}: is a file; expected a folder, or a name that ends in .jsonl or .parquet.")
        found = {path.name for path in self.output.iterdir()}  # it will be replaced
        if found - OURS or (found and PAIRS_REPORT not in found):
            strange = sorted(found - OURS) or sorted(found)
            raise DataError(f"{self.output}: holds '{strange[0]}', which pairs has not written. Give another folder.")

    def _check_single(self) -> None:
        report = _report_of(self.output)
        if report.exists() and not _is_report(report):
            raise DataError(f"{report}: is no report of pairs, and would be replaced. Give another --output.")
        if self.output.exists() and not report.exists():
            raise DataError(
                f"{self.output}: exists, and has no {report.name} beside it as a file of pairs has. Give another "
                "--output, or delete it."
            )

    def _write_table(self, path: Path, rows: Rows) -> None:
        if self.format == "parquet":
            from datasets import Dataset

            Dataset.from_list(_rectangular(rows)).to_parquet(str(path))
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _report_of(table: Path) -> Path:
    return table.with_name(table.name + ".report")


def _is_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"rows", "kept"} <= found.keys()


def _save_to_disk(folder: Path, parts: Mapping[str, Rows]) -> None:
    from datasets import Dataset, DatasetDict

    tables = {name: Dataset.from_list(_rectangular(rows)) for name, rows in parts.items()}
    DatasetDict(tables).save_to_disk(str(folder))


def _rectangular(rows: Rows) -> list[dict[str, Any]]:
    """Rows that all have the same columns; tools are free-form JSON, which a table holds as text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    tabled = [{name: row.get(name) for name in names} for row in rows]
    for row in tabled:
        if row.get("tools") is not None:
            row["tools"] = json.dumps(row["tools"], ensure_ascii=False)
    return tabled


def _write_report(path: Path, report: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
