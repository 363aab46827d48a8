"""The file that a long job appends to, chunk by chunk, so that it can be killed at any time and go on.

    line 1      {"settings": {...}, "rank": 0, "world": 1}
    then        one JSON object an item, in the order of the items; appended a whole chunk at a time, and synced

Chunk number c of the job belongs to rank c mod world. Items are never reordered, so what is done is known from the
number of lines; a last chunk that was torn is cut off and made again. `read_items` puts the journals of all ranks
together. One process has a journal at a time (`preftune.lock`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import CheckpointError, DataError
from preftune.lock import Lock

Item = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """What one process does: chunks `rank`, `rank + world`, ... of `items` items."""

    items: int
    chunk: int
    rank: int = 0
    world: int = 1

    def chunks(self) -> list[range]:
        """The numbers of the items in each chunk."""
        starts = range(self.rank * self.chunk, self.items, self.world * self.chunk)
        return [range(start, min(start + self.chunk, self.items)) for start in starts]

    @property
    def name(self) -> str:
        return f"rank-{self.rank}-of-{self.world}.jsonl"


class Journal:
    """The journal of one rank, opened to go on, and its own until `close`.

    Args:
        folder: of the job's journals; made when it is not there.
        settings: JSON values that the items depend on; a job goes on only with the same.

    Raises:
        CheckpointError: it was begun with other settings or another number of processes, is damaged, or another
            process is at it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], share: Share) -> None:
        self.path, self.share = folder / share.name, share
        self.header = {"settings": json.loads(json.dumps(settings)), "rank": share.rank, "world": share.world}
        folder.mkdir(parents=True, exist_ok=True)
        _check_world(folder, share.world)
        self.lock = Lock(self.path)
        self.done = self._repair()  # chunks

    def close(self) -> None:
        """Let others have it."""
        self.lock.close()

    def left(self) -> list[range]:
        """The chunks that are still to be made."""
        return self.share.chunks()[self.done :]

    def append(self, items: Sequence[Item]) -> None:
        """Add the next chunk; it is on the disk when this returns."""
        chunk = self.left()[0]
        assert len(items) == len(chunk)
        with self.path.open("ab") as file:
            file.write(b"".join(map(_line, items)))
            file.flush()
            os.fsync(file.fileno())
        self.done += 1

    def _repair(self) -> int:
        """Cut off a torn chunk; gives the number of whole ones."""
        lines = list(_whole_lines(self.path))
        if not lines:  # not begun, or killed within the first line
            part = self.path.with_suffix(".part")
            part.write_bytes(_line(self.header))
            part.replace(self.path)
            return 0
        _check_header(self.path, _parse(self.path, 1, lines[0]), self.header)
        whole, kept = 0, 1
        for chunk in self.share.chunks():
            if kept + len(chunk) > len(lines):
                break
            whole, kept = whole + 1, kept + len(chunk)
        size = sum(map(len, lines[:kept]))
        if size < self.path.stat().st_size:
            os.truncate(self.path, size)
        return whole


def journal_folder(output: Path) -> Path:
    """Where the journals of a job are whose result is `output`."""
    return output.with_name(output.name + ".job")


def read_items(folder: Path, items: int, chunk: int, world: int) -> list[Item] | None:
    """All items in their order; None while a rank has not finished.

    Raises:
        CheckpointError: a journal is damaged or of other settings than the rest.
    """
    found: list[Item | None] = [None] * items
    first: Item | None = None
    for rank in range(world):
        share = Share(items, chunk, rank, world)
        path = folder / share.name
        lines = list(_whole_lines(path))
        numbers = [number for numbers in share.chunks() for number in numbers]
        if len(lines) != len(numbers) + 1:
            return None
        header = _parse(path, 1, lines[0])
        first = first or header
        _check_header(path, header, {**first, "rank": rank})
        for place, (number, line) in enumerate(zip(numbers, lines[1:], strict=True), start=2):
            found[number] = _parse(path, place, line)
    whole = [item for item in found if item is not None]
    assert len(whole) == items
    return whole


def write_rows(path: Path, rows: Sequence[Item]) -> None:
    """The rows as JSON lines, or no file at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(b"".join(map(_line, rows)))
    part.replace(path)


def check_output(output: Path) -> None:
    """Refuse to write over a file that no job of ours has made.

    Raises:
        DataError: it cannot be written there.
    """
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise DataError(
            f"{output}: cannot be written there. Give a file in a folder that exists and can be written to."
        )
    if output.exists() and not journal_folder(output).is_dir():
        raise DataError(f"{output}: exists, and there is no job to go on with. Give another --output, or delete it.")


def _check_world(folder: Path, world: int) -> None:
    others = sorted(path.name for path in folder.glob("rank-*.jsonl") if not path.stem.endswith(f"-of-{world}"))
    if others:
        begun = others[0].removesuffix(".jsonl").rpartition("-")[2]
        raise CheckpointError(
            f"{folder}: the job was begun by {begun} processes and would go on with {world}. Start {begun} again, or "
            "delete the folder to begin anew."
        )


def _check_header(path: Path, found: Item, wanted: Item) -> None:
    if found == wanted:
        return
    old, new = (header.get("settings") if isinstance(header, dict) else None for header in (found, wanted))
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise CheckpointError(f"{path}: its first line is not that of a job. Delete the folder to begin anew.")
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    raise CheckpointError(
        f"{path.parent}: the job was begun with other settings: {'; '.join(changes) or 'rank or world'}. Set "
        "them back, give another --output, or delete the folder to begin anew."
    )


def _whole_lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _parse(path: Path, number: int, line: bytes) -> Item:
    try:
        item = json.loads(line)
    except ValueError:
        item = None
    if not isinstance(item, dict):
        raise CheckpointError(f"{path}: line {number} is damaged. Delete the file to make its share again.")
    return item


def _line(item: Mapping[str, Any]) -> bytes:
    # half a surrogate pair, which UTF-8 has no bytes for, becomes its JSON escape
    return json.dumps(item, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
