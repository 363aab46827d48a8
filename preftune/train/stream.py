"""Groups from files that are larger than memory: read, encoded and shuffled a window at a time.

The groups of one pass over the files are cut into windows of `streaming_buffer` groups, and each is shuffled by (seed,
pass, window): the rows of a step are a pure function of files, recipe, seed and step. A window is a whole number of
steps; the last step of a pass may be smaller, as that of an epoch. A stream of one window has the order of a run in
memory.

A `Mark` says where a window begins. A checkpoint keeps that of its step, so that a resume skips to it and encodes
nothing that lies before.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from preftune.data import ColumnMapping, Row, TokenizationReport, to_examples
from preftune.data.bad_rows import OnBadRow, SkippedRows
from preftune.data.formats import read_rows, to_layout
from preftune.data.plan import Cut, epoch_order
from preftune.data.preferences import columns_of
from preftune.data.sources import no_rows
from preftune.data.stream import StreamPart, find_parts, fingerprint, read_records
from preftune.data.system import with_system
from preftune.data.tokenize import piece_encoder
from preftune.errors import DataError
from preftune.recipe import Recipe
from preftune.train.data import benchmark_questions, look_at, tokenize_for
from preftune.train.identity import hash_groups
from preftune.train.loader import StepKey
from preftune.train.step import Packing, build_step
from preftune.types import Example, Origin, Step, TokenizedGroup

logger = logging.getLogger(__name__)
LOOKED_AT = 1000  # rows of a source that say what its columns are
CHUNK = 1000  # rows read and encoded together
KEPT_MARKS = 8  # the loader is a step or two ahead of the trainer
# What beside the files decides which groups there are, and in which order.
SETTINGS = (
    *("columns", "ranked_pairs", "on_bad_row", "system_prompt", "streaming_buffer", "decontaminate"),
    *("max_length", "max_prompt_length", "truncation", "cut_response_end", "tokenization"),
)


@dataclass(frozen=True)
class Mark:
    """Where a window begins: its first step, its pass and number, and the chunk of rows with its first group.

    file, row: the number of the chunk's file, and the rows of the file before it; used: groups of the chunk that lie
    before the window.
    """

    FILE = "stream.json"  # in a checkpoint

    step: int = 0
    epoch: int = 0
    window: int = 0
    file: int = 0
    row: int = 0
    used: int = 0


@dataclass(frozen=True)
class _File:
    path: Path
    split: str
    mapping: ColumnMapping
    on_bad_row: OnBadRow
    exclude: dict[str, tuple[Any, ...]]

    def rows(self, skip: int = 0) -> Iterator[Row]:
        for number, values in read_records(self.path, skip):
            yield Row(values, Origin(str(self.path), self.split, number))


@dataclass
class Counts:
    """What was read so far in this process, repeats included."""

    rows: int = 0
    groups: int = 0
    passes: int = 0
    skipped: SkippedRows = field(default_factory=SkippedRows)
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left_out = "".join(f"; {count} left out: {reason}" for reason, count in self.dropped.items())
        skipped = f"; {self.skipped}" if self.skipped.total else ""
        return f"{self.rows} rows read, {self.groups} groups, {self.passes} whole passes{skipped}{left_out}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.groups,
            "rows_read": self.rows,
            "passes": self.passes,
            "bad_rows": self.skipped.to_dict(),
            "dropped": {reason: {"rows": count} for reason, count in self.dropped.items()},
        }


class GroupStream:
    """The groups of a recipe's files. Its first rows are read, checked and encoded when it is made.

    Raises:
        PreftuneError: a setting is not for a stream, or what is read of the files is wrong.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.buffer = recipe, recipe.streaming_buffer
        self.counts = Counts()
        self.marks: list[Mark] = [Mark()]
        self.files: list[_File] = []
        examples: list[Example] = []
        for part in _parts(recipe):
            first, files = _first_of(recipe, part)
            examples += first
            self.files += files
        look_at(recipe, tokenizer, examples)
        self.first: list[TokenizedGroup]
        self.report: TokenizationReport
        self.first, self.report = tokenize_for(recipe, tokenizer, examples)
        self._encode = piece_encoder(
            tokenizer,
            max_length=recipe.max_length,
            max_prompt_length=recipe.max_prompt_length,
            truncation=recipe.truncation,
            cut_response_end=recipe.cut_response_end,
            on_bad_row=recipe.on_bad_row or "error",
            decontaminate=benchmark_questions(recipe.decontaminate),
            tokenization=recipe.tokenization,
        )

    @property
    def identity(self) -> str:
        """A hash of the files, the settings and the first groups."""
        settings = json.dumps({key: getattr(self.recipe, key) for key in SETTINGS})
        parts = [fingerprint(file.path for file in self.files), settings, hash_groups(self.first)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def steps(self, mark: Mark, batch: int, seed: int) -> Iterator[tuple[int, list[TokenizedGroup]]]:
        """(number, groups) of each step from the mark's on, without end. Notes the mark of each window."""
        for begun, groups in self._windows(mark, batch):
            self.marks = [*self.marks[-KEPT_MARKS:], begun]
            # of the first window the order of a run in memory; the factor keeps windows and epochs apart
            order = epoch_order(len(groups), seed + 7_368_787 * begun.window, begun.epoch)
            for number, start in enumerate(range(0, len(groups), batch)):
                yield begun.step + number, [groups[place] for place in order[start : start + batch]]

    def _windows(self, mark: Mark, batch: int) -> Iterator[tuple[Mark, list[TokenizedGroup]]]:
        size = -(-self.buffer // batch) * batch
        while True:
            begun, used = mark, mark.used
            groups: list[TokenizedGroup] = []
            for file, row, chunk in self._chunks(mark.file, mark.row):
                while len(groups) + len(chunk) - used >= size:
                    taken = size - len(groups)
                    yield mark, groups + chunk[used : used + taken]
                    groups, used = [], used + taken
                    mark = Mark(mark.step + size // batch, mark.epoch, mark.window + 1, file, row, used)
                groups += chunk[used:]
                used = 0
            if groups:
                yield mark, groups
            elif mark == begun == Mark(mark.step, mark.epoch):  # a whole pass without a group
                raise DataError(f"{self.files[0].path}: all rows of the stream are left out ({self.counts}).")
            self.counts.passes += 1
            logger.info("The stream was read to its end and begins again: %s", self.counts)
            mark = Mark(mark.step + -(-len(groups) // batch), mark.epoch + 1)

    def _chunks(self, first: int, row: int) -> Iterator[tuple[int, int, list[TokenizedGroup]]]:
        """(file, rows of the file before it, groups) of each chunk of the rest of a pass."""
        for number in range(first, len(self.files)):
            file = self.files[number]
            done = row if number == first else 0
            rows = file.rows(done)
            while chunk := list(islice(rows, CHUNK)):
                yield number, done, self._to_groups(chunk, file)
                done += len(chunk)
            if not done:
                raise no_rows(str(file.path))

    def _to_groups(self, rows: list[Row], file: _File) -> list[TokenizedGroup]:
        self.counts.rows += len(rows)
        rows = _not_excluded(rows, file.exclude)
        read = read_rows(rows, file.mapping, file.on_bad_row, self.counts.skipped, all_bad=True)
        examples = to_layout(read, file.mapping, self.recipe.ranked_pairs)
        groups, dropped = self._encode(with_system(examples, self.recipe.system_prompt))
        self.counts.dropped.update({reason: len(origins) for reason, origins in dropped.items() if origins})
        self.counts.groups += len(groups)
        return groups

    def mark_of(self, step: int) -> Mark:
        """The last window known to begin at or before a step."""
        return next((mark for mark in reversed(self.marks) if mark.step <= step), Mark())

    def save_mark(self, folder: Path, step: int) -> None:
        (folder / Mark.FILE).write_text(json.dumps(asdict(self.mark_of(step))), encoding="utf-8")

    def load_mark(self, folder: Path) -> None:
        self.marks = [Mark(**json.loads((folder / Mark.FILE).read_text(encoding="utf-8")))]


def first_examples(
    recipe: Recipe, *, skipped: SkippedRows | None = None, mappings: dict[str, ColumnMapping] | None = None
) -> list[Example]:
    """The examples of the first rows of every source; `skipped` and `mappings` as for `load_preferences`.

    Raises:
        PreftuneError: as for `GroupStream`.
    """
    found = [_first_of(recipe, part, skipped, mappings)[0] for part in _parts(recipe)]
    return [example for examples in found for example in examples]


def _parts(recipe: Recipe) -> list[StreamPart]:
    return find_parts(
        recipe.dataset,
        splits=recipe.dataset_splits,
        configs=recipe.dataset_configs,
        catalog=recipe.dataset_catalog,
    )


def _first_of(
    recipe: Recipe,
    part: StreamPart,
    skipped: SkippedRows | None = None,
    mappings: dict[str, ColumnMapping] | None = None,
) -> tuple[list[Example], list[_File]]:
    """The examples of a source's first rows, and its files with what was understood of these rows."""
    source, entry = part.source, part.entry
    exclude = dict(entry.exclude) if entry else {}
    on_bad_row = source.on_bad_row or recipe.on_bad_row or (entry.on_bad_row if entry else "error")
    records = chain.from_iterable(
        (Row(values, Origin(str(path), split, number)) for number, values in read_records(path))
        for path, split in part.files
    )
    rows = _not_excluded(list(islice(records, LOOKED_AT)), exclude)
    if not rows:
        raise no_rows(source.name)
    understood: dict[str, ColumnMapping] = {}
    examples = to_examples(
        rows,
        recipe.build_objective().layout,
        columns_of(source, entry, recipe.columns, rows),
        ranked_pairs=recipe.ranked_pairs,
        on_bad_row=on_bad_row,
        skipped=skipped,
        mappings=understood,
    )
    (mapping,) = understood.values()
    if mappings is not None:
        mappings.update(understood)
    logger.info("%s: streamed; the first %d rows say what its columns are", source.name, len(rows))
    files = [_File(path, split, mapping, on_bad_row, exclude) for path, split in part.files]
    return with_system(examples, recipe.system_prompt), files


def _not_excluded(rows: list[Row], exclude: dict[str, tuple[Any, ...]]) -> list[Row]:
    return [row for row in rows if not any(row.values.get(name) in values for name, values in exclude.items())]


class StreamSource(Dataset):
    """Builds the step of a key from a stream: forward by reading on, backward by beginning again at a mark.

    The `max_steps` steps of a run are one epoch to the Trainer.
    """

    def __init__(
        self,
        stream: GroupStream,
        global_batch: int,
        cut: Cut,
        seed: int,
        steps: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        packing: Packing | None = None,
    ) -> None:
        self.stream, self.global_batch, self.cut, self.seed, self.steps = stream, global_batch, cut, seed, steps
        self.rank, self.ranks, self.packing = rank, ranks, packing
        self._next = -1
        self._reading: Iterator[tuple[int, list[TokenizedGroup]]] = iter(())

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitems__(self, keys: list[StepKey]) -> list[Step]:
        return [self[key] for key in keys]

    def __getitem__(self, key: StepKey) -> Step:
        groups = self.groups_of(key[1])
        return build_step(groups, self.cut, rank=self.rank, ranks=self.ranks, packing=self.packing)

    def groups_of(self, step: int) -> list[TokenizedGroup]:
        if step != self._next:
            self._reading = self.stream.steps(self.stream.mark_of(step), self.global_batch, self.seed)
        groups = next(groups for number, groups in self._reading if number == step)
        self._next = step + 1
        return groups
