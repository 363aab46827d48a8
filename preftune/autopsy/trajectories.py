"""`margins.jsonl` of a run -> one trajectory for each pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from preftune.errors import DataError
from preftune.train.checkpoint import MARGINS
from preftune.train.record import read_log

Key = tuple[str, int, int]  # source, row, digest: see `preftune.train.margins`


@dataclass(frozen=True)
class Trajectory:
    """The margins of one pair, oldest first, at the steps before which they were measured.

    chosen, rejected: tokens of the two responses as they were trained on.
    """

    source: str
    row: int
    digest: int
    chosen: int
    rejected: int
    steps: tuple[int, ...]
    margins: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.source} row {self.row}"

    @property
    def key(self) -> Key:
        return self.source, self.row, self.digest

    @property
    def longer(self) -> int:
        """Tokens by which the chosen response is longer."""
        return self.chosen - self.rejected

    @property
    def first(self) -> float:
        return self.margins[0]

    @property
    def last(self) -> float:
        return self.margins[-1]

    @property
    def mean(self) -> float:
        return fmean(self.margins)


def read_trajectories(run: Path) -> list[Trajectory]:
    """Those of a run folder, in the order of sources and rows.

    Raises:
        DataError: there are none.
    """
    if not run.is_dir():
        raise DataError(f"{run}: there is no such folder; expected a run, the output_dir of `preftune train`.")
    visits: dict[Key, list[tuple[int, float]]] = {}
    tokens: dict[Key, tuple[int, int]] = {}
    for line in read_log(run / MARGINS):
        for place, row, digest, margin, chosen, rejected in line["pairs"]:
            key = (line["sources"][place], row, digest)
            visits.setdefault(key, []).append((line["step"], margin))
            tokens[key] = (chosen, rejected)
    if not visits:
        raise DataError(
            f"{run}: no {MARGINS} with margins, which a run on pairs or ranked responses writes with record_margins: "
            "true. Score its checkpoints instead: --checkpoints."
        )
    return [
        Trajectory(*key, *tokens[key], tuple(step for step, _ in own), tuple(margin for _, margin in own))
        for key, own in sorted(visits.items())
    ]
