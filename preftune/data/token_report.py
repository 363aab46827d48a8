"""What tokenising did with the rows: lengths, cuts, rows left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from preftune.data.chat import ChatFormat
from preftune.types import Origin, TokenizedGroup

LISTED = 20  # rows named for each reason in `to_dict`


@dataclass(frozen=True)
class LengthSummary:
    """Percentiles of a length, in tokens."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int

    def __str__(self) -> str:
        return f"{self.p50} / {self.p90} / {self.p99} / {self.max}"


@dataclass(frozen=True)
class TokenizationReport:
    """What became of the rows. `lengths` are those before anything was cut, with BOS and end of turn, in tokens.

    rows: how many there are now; rows_cut: how many of them were cut; dropped: reason to the rows that were left out.
    special_rows: rows whose text spells a special token; `special_as_text` says whether it was encoded as text.
    """

    rows: int
    rows_cut: int
    prompts_cut: int
    responses_cut: int
    lengths: dict[str, LengthSummary]
    bos: str
    end_of_turn: str
    dropped: dict[str, tuple[Origin, ...]] = field(default_factory=dict)
    special_rows: int = 0
    special_as_text: bool = True

    @property
    def rows_dropped(self) -> int:
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        lengths = ", ".join(f"{name} {summary}" for name, summary in self.lengths.items())
        cut = f"{self.prompts_cut} prompts and {self.responses_cut} responses cut" if self.rows_cut else "nothing cut"
        touched = f" ({self.rows_cut} rows touched)" if self.rows_cut else ""
        lines = [f"{self.rows} rows, {cut}{touched}"]
        if self.dropped:
            reasons = "; ".join(f"{len(rows)} {reason}" for reason, rows in self.dropped.items())
            lines.append(f"{self.rows_dropped} rows left out: {reasons}")
        if self.special_rows:
            what = "text" if self.special_as_text else "control tokens, which this tokenizer cannot help"
            lines.append(f"{self.special_rows} rows spell out special tokens: encoded as {what}")
        lines.append(f"tokens (median / 90 % / 99 % / longest): {lengths}")
        return "\n".join([*lines, f"BOS: {self.bos}", f"end of turn: {self.end_of_turn}"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; of the rows left out, their number and the first of them."""
        dropped = {
            reason: {"rows": len(rows), "first": [str(row) for row in rows[:LISTED]]}
            for reason, rows in self.dropped.items()
        }
        return {**asdict(self), "dropped": dropped}


def build_report(
    whole: Sequence[TokenizedGroup],
    cut: Sequence[TokenizedGroup],
    dropped: Mapping[str, Sequence[Origin]],
    chat: ChatFormat,
    special_rows: int,
) -> TokenizationReport:
    """The report: `whole` are the groups that were kept, as they were before they became `cut`."""
    pairs = [(before, after) for before, after in zip(whole, cut, strict=True) if before is not after]
    return TokenizationReport(
        rows=len(cut),
        rows_cut=len(pairs),
        prompts_cut=sum(len(after.prompt_ids) < len(before.prompt_ids) for before, after in pairs),
        responses_cut=sum(
            len(short) < len(long)
            for before, after in pairs
            for long, short in zip(before.response_ids, after.response_ids, strict=True)
        ),
        lengths=_lengths(whole),
        bos=chat.describe_bos(),
        end_of_turn=chat.describe_end(),
        dropped={reason: tuple(origins) for reason, origins in dropped.items() if origins},
        special_rows=special_rows,
        special_as_text=chat.literal is None or chat.literal.exact,
    )


def _lengths(groups: Sequence[TokenizedGroup]) -> dict[str, LengthSummary]:
    if not groups:
        return {}
    most = max(len(group.response_ids) for group in groups)
    names = {1: ["response"], 2: ["chosen", "rejected"]}.get(most, [f"rank {k}" for k in range(most)])
    lengths = {"prompt": _summary([len(group.prompt_ids) for group in groups])}
    for k, name in enumerate(names):
        lengths[name] = _summary([len(g.response_ids[k]) for g in groups if k < len(g.response_ids)])
    return lengths


def _summary(lengths: Sequence[int]) -> LengthSummary:
    ordered = sorted(lengths)

    def at(share: float) -> int:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return LengthSummary(sum(ordered) / len(ordered), at(0.5), at(0.9), at(0.99), ordered[-1])
