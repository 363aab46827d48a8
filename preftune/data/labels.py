"""Labels and scores as files write them, as numbers. In: any value. Out: a float, or None where it is neither."""

from __future__ import annotations

LARGEST = 3.4e38  # scores become float32
LABELS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}  # a csv file has only text


def to_label(value: object) -> float | None:
    """1.0 for desirable, 0.0 for undesirable: a bool, 0 or 1, or one of these as text in any case."""
    if isinstance(value, str):
        return LABELS.get(value.strip().lower())
    return float(value) if isinstance(value, int | float) and value in (0, 1) else None


def to_number(value: object) -> float | None:
    """A finite number, also one written as text; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None
