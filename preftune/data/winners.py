"""Two answers side by side and a column that says which is better: which columns these are, and what its values mean.

The winner is written by its name (`2`, `"model_b"`, `"output_2"`, or the column's own name), or by its place
(`winner_index`). A number between the two is a judge's soft preference and counts for the nearer one.

    names          first    second   tie                    found in
    1 and 2        1        2        0, 1.5, or in words    LLMBar, PandaLM, AlpacaEval annotations
    0 and 1        0        1        0.5, or in words       SafeRLHF's better_response_id
    a and b        a        b        in words               arena votes
    winner_index   0        1        2, 0.5, or in words    Auto-J

1, 2 and 0 say different things by name and by place, so a numeric column that holds 0 beside answers 1 and 2 is not
read before `columns:` says which it is; one that holds 1 and 2 alone is read by name. Where 1 stands for the first and
0 for the second (SHP), map the answers the other way round:
{human_ref_B: answer_1, human_ref_A: answer_2, labels: winner_index}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product

from preftune.data.labels import to_number

FIRST, SECOND, TIE = 0, 1, 2
BASES = ("answer", "response", "output", "completion", "generation", "conversation", "reply", "text")
ENDS = (("1", "2"), ("0", "1"), ("a", "b"), ("A", "B"))
WINNER, WINNER_INDEX = "winner", "winner_index"
WINNERS = (WINNER, "preference", "better_response_id", "preferred", "better", "choice", "label")
ANNOTATOR = re.compile(r"annotator_?\d+")  # PandaLM: one column for each of three people, 0 for a tie
PAIRS = tuple(
    (f"{base}{gap}{first}", f"{base}{gap}{second}")
    for base, gap, (first, second) in product(BASES, ("_", "", " "), ENDS)
)
TIES = frozenset({"tie", "tie (bothbad)", "both", "bothbad", "both_bad", "equal", "same", "draw", "none", "neither"})


def find_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that call themselves answer 1 and 2, a and b, ...."""
    found = set(names)
    return next((pair for pair in PAIRS if found.issuperset(pair)), None)


def find_winners(names: Mapping[str, str]) -> dict[str, str]:
    """Role to column: winner, or winner_index, or one for each annotator."""
    if WINNER_INDEX in names:
        return {WINNER_INDEX: names[WINNER_INDEX]}
    single = next((names[name] for name in WINNERS if name in names), None)
    if single is not None:
        return {WINNER: single}
    annotators = [names[name] for name in names if ANNOTATOR.fullmatch(name)]
    return {WINNER if place == 1 else f"{WINNER} {place}": name for place, name in enumerate(annotators, 1)}


def is_ambiguous(values: Iterable[object], columns: tuple[str, str]) -> bool:
    """Whether the numbers could be names or places: those outside 1 to 2, or outside 0 to 1 beside answers 0 and 1."""
    low = _lowest(columns)
    return any(not low <= number <= low + 1 for number in map(to_number, values) if number is not None)


def verdict(value: object, role: str, columns: tuple[str, str]) -> int | None:
    """FIRST, SECOND or TIE; None where `value` says none of them.

    Args:
        role: winner (or winner 2, ...), or winner_index.
        columns: the names of the two answers in the file.
    """
    number = to_number(value)
    if number is not None:
        low = 0 if role == WINNER_INDEX else _lowest(columns)
        tie = 2 if role == WINNER_INDEX else 0 if low else None
        return _by_number(number, low, tie)
    if not isinstance(value, str):
        return None
    said = value.strip().lower()
    if said in TIES:
        return TIE
    first, second = (_is_name(said, column.lower()) for column in columns)
    return None if first == second else FIRST if first else SECOND


def majority(verdicts: Iterable[int]) -> int:
    """What more than half of the annotators say, else a tie."""
    given = list(verdicts)
    return next((side for side in (FIRST, SECOND) if 2 * given.count(side) > len(given)), TIE)


def _lowest(columns: tuple[str, str]) -> int:
    return 0 if columns[0].endswith("0") else 1


def _by_number(number: float, low: int, tie: int | None) -> int | None:
    if number == tie:
        return TIE
    if not low <= number <= low + 1:
        return None
    middle = low + 0.5
    return TIE if number == middle else FIRST if number < middle else SECOND


def _is_name(said: str, column: str) -> bool:
    """Of `response_b`: itself, `b`, `model_b`, `answer b`; of a column without number or letter, its whole name."""
    end = re.search(r"(?<![a-z])[ab]$|[012]$", column)
    return said == column or (end is not None and re.fullmatch(rf"(?:.*[^a-z0-9])?{end[0]}", said) is not None)
