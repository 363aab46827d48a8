"""The tables of a report, which the page and the Markdown file both show: each figure as its JSON has it, and as text.

Numbers of different judges, baselines or rules are never in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.evaluation.arena_hard import PERCENTILES
from preftune.report.collect import Evaluations, Judging, Run
from preftune.train.card import FIGURES

NORMAL = 1.96  # standard errors, 95 %
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """value: the number in full, None for words."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    title: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Column:
    """Where a column's value is found in a row of figures, and how it is written."""

    heading: str
    read: str | Callable[[Values], Any]
    form: str = ".2f"

    def cell(self, row: Values) -> Cell:
        value = self.read(row) if callable(self.read) else row.get(self.read)
        if value is None or isinstance(value, str | bool):
            return Cell("" if value is None else str(value))
        return Cell(format(value, self.form), value)


def build(title: str, columns: Sequence[Column], rows: Sequence[Values], note: str = "") -> Table:
    """A table without the columns that no row has."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    kept = [at for at in range(len(columns)) if any(line[at].text for line in cells)]
    return Table(title, tuple(columns[at].heading for at in kept), [[line[at] for at in kept] for line in cells], note)


# --- runs


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """What was trained and how it went; nothing without runs."""
    if not runs:
        return []
    rows = [{"name": run.name, **run.summary, **run.metrics} for run in runs]
    columns = [Column("run", "name"), Column("objective", "objective"), Column("steps", "steps", ","),
               Column("groups", "rows", ",")]  # fmt: skip
    columns += [Column(key, key, ".4g") for key, _ in FIGURES]
    columns += [Column(key, key, ".4g") for key in _lengths(runs)]
    ends = [run.name for run in runs if not run.summary]
    note = f"Not ended, last values of the log: {', '.join(ends)}." if ends else ""
    heldout = [_heldout(run) for run in runs if run.summary.get("heldout")]
    return [_turned(build("Runs", columns, rows, note)), *heldout]


def _turned(table: Table) -> Table:
    """A column for each run: there are more figures than runs."""
    names = tuple(row[0].text for row in table.rows)
    rows = [[Cell(heading), *(row[at] for row in table.rows)] for at, heading in enumerate(table.headings) if at]
    return Table(table.title, ("figure", *names), rows, table.note)


def _heldout(run: Run) -> Table:
    """What a run measured of its answers before and after (the demo does)."""
    figures = run.summary["heldout"]
    names = [key.removesuffix("_before") for key in figures if key.endswith("_before")]
    rows = [
        {"name": name, "before": figures[f"{name}_before"], "after": figures.get(f"{name}_after")} for name in names
    ]
    columns = [Column("figure", "name"), Column("before", "before", ".4g"), Column("after", "after", ".4g")]
    return build(f"{run.name}: held-out prompts, before and after", columns, rows)


def _lengths(runs: Sequence[Run]) -> list[str]:
    found = {key for run in runs for key in run.metrics if key.removeprefix("eval_").startswith("lengths/")}
    return sorted(found)


def cost_tables(runs: Sequence[Run], judgings: Sequence[Judging], prices: Sequence[float] | None) -> list[Table]:
    """Of training and of judging. prices: of a million tokens that a judge reads and writes."""
    trained = [
        Column("run", "name"),
        Column("seconds in all", "seconds_total"),
        Column("of them training", "train_seconds"),
        Column("tokens", "tokens_total", ","),
        Column("groups a second", "groups_per_second", ".4g"),
        Column("peak memory, GiB", "peak_memory_gib"),
        Column("processes", "processes"),
        Column("device", "device"),
    ]
    ended = [{"name": run.name, **run.summary} for run in runs if run.summary]
    tables = [build("Cost of training", _plain(trained), ended)] if ended else []
    if judgings:
        rows = [{"name": one.name, "requests": one.requests, "read": one.read, "written": one.written,
                 "cost": _cost(one, prices)} for one in judgings]  # fmt: skip
        columns = [Column("replies", "name"), Column("requests", "requests", ","), Column("tokens read", "read", ","),
                   Column("tokens written", "written", ","), Column("cost", "cost", ".4f")]  # fmt: skip
        note = f"At {prices[0]:g} and {prices[1]:g} for a million tokens read and written." if prices else ""
        tables.append(build("Cost of judging", columns, rows, note))
    return tables


def _plain(columns: Sequence[Column]) -> list[Column]:
    return [Column(one.heading, one.read, "" if one.heading == "processes" else one.form) for one in columns]


def _cost(judging: Judging, prices: Sequence[float] | None) -> float | None:
    if prices is None or judging.read is None or judging.written is None:
        return None
    return (judging.read * prices[0] + judging.written * prices[1]) / 1e6


# --- evaluations


def evaluation_tables(found: Evaluations) -> list[Table]:
    """One table for each benchmark, judge, baseline and set of rules; best first."""
    tables = _grouped(found, "alpaca-eval", ("annotator", "baseline", "lc_variant"), _ALPACA, "win_rate",
                      "AlpacaEval 2, judged by {annotator} against {baseline}", _ALPACA_NOTE)  # fmt: skip
    for version, (low, high) in PERCENTILES.items():
        own = [item for item in found.scores.get("arena-hard", []) if item[1]["version"] == version]
        tables += _grouped(Evaluations({"arena-hard": own}), "arena-hard", ("judge", "category", "style"), _ARENA,
                           "score", f"Arena-Hard {version}{{category}}{{style}}, judged by {{judge}}",
                           f"Interval: {high - low:g} % of 100 bootstraps.")  # fmt: skip
    tables += _grouped(found, "mt-bench", ("judge",), _mt_columns(found), "score", "MT-Bench, rated by {judge}")
    tables += _grouped(found, "mt-bench-pairs", ("judge",), _PAIRS, "win_rate_adjusted",
                       "MT-Bench, games in both orders, judged by {judge}",
                       "Adjusted: wins and half of the ties. A win is one in both orders.")  # fmt: skip
    for kind, make in (("preferences", _preferences), ("regress", _regress), ("harness", _harness)):
        tables += [make(name, row) for name, row in found.scores.get(kind, [])]
    return tables


def _grouped(
    found: Evaluations, kind: str, by: Sequence[str], columns: Sequence[Column], best: str, title: str, note: str = ""
) -> list[Table]:
    groups: dict[tuple[Any, ...], list[Values]] = {}
    for _, row in found.scores.get(kind, []):
        groups.setdefault(tuple(row.get(key) for key in by), []).append(row)
    tables = []
    for names, rows in groups.items():
        words = {key: _word(key, name) for key, name in zip(by, names, strict=True)}
        rows = sorted(rows, key=lambda row: -row[best])
        tables.append(build(title.format(**words), columns, rows, note))
    return tables


def _word(key: str, name: Any) -> str:
    """What a title calls the value that the rows of a table have in common."""
    if key == "category":
        return "" if name is None else f", {name}"
    if key == "style":
        return "" if name is None else f", {'length and markdown' if name == 'both' else name} taken out"
    return f"an unnamed {key}" if name is None else str(name)


def _bound(middle: str, error: str, sign: int) -> Callable[[Values], float | None]:
    """A bound of the normal 95 % interval."""

    def read(row: Values) -> float | None:
        if row.get(middle) is None or row.get(error) is None:
            return None
        return float(row[middle] + sign * NORMAL * row[error])

    return read


_ALPACA = (
    Column("model", "model"),
    Column("LC win rate, %", "length_controlled_winrate"),
    Column("win rate, %", "win_rate"),
    Column("from", _bound("win_rate", "standard_error", -1)),
    Column("to", _bound("win_rate", "standard_error", 1)),
    Column("standard error", "standard_error"),
    Column("discrete, %", "discrete_win_rate"),
    Column("length, characters", "avg_length", ","),
    Column("judged", "n_total", ","),
    Column("null", "n_null", ","),
)
_ALPACA_NOTE = "From and to: the normal 95 % interval of the win rate."
_ARENA = (
    Column("model", "model"),
    Column("score, %", "score"),
    Column("from", "lower"),
    Column("to", "upper"),
    Column("battles", "battles", ","),
    Column("questions", "questions", ","),
    Column("null", "nulls", ","),
    Column("length, tokens", "avg_tokens", ",.0f"),
)
_PAIRS = (
    Column("model", "model"),
    Column("win rate, %", "win_rate"),
    Column("adjusted, %", "win_rate_adjusted"),
    Column("loss rate, %", "loss_rate"),
    *(Column(name, name, ",") for name in ("wins", "losses", "ties", "errors")),
)


def _mt_columns(found: Evaluations) -> list[Column]:
    rows = [row for _, row in found.scores.get("mt-bench", [])]
    turns = sorted({str(turn) for row in rows for turn in row["by_turn"]})
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["by_category"]))
    return [
        Column("model", "model"),
        Column("score", "score", ".3f"),
        *(Column(f"turn {turn}", _inside("by_turn", turn), ".3f") for turn in turns),
        *(Column(kind, _inside("by_category", kind)) for kind in kinds),
        Column("rated", "rated", ","),
        Column("unrated", "unrated", ","),
    ]


def _inside(outer: str, inner: str) -> Callable[[Values], Any]:
    return lambda row: row[outer].get(inner)


def _preferences(name: str, row: Values) -> Table:
    parts = {"all": row["overall"], **row["by_length"], **row["subsets"]}
    columns = [Column("pairs of", "name"), Column("pairs", "pairs", ","), Column("accuracy, %", "accuracy"),
               Column("from", _bound("accuracy", "standard_error", -1)),
               Column("to", _bound("accuracy", "standard_error", 1)), Column("margin", "margin", ".4g")]  # fmt: skip
    lines = [{"name": key, **values} for key, values in parts.items()]
    return build(f"Reward accuracy: {name}", columns, lines, f"Reward: {row['reward']}. Normal 95 % intervals.")


def _regress(name: str, row: Values) -> Table:
    columns = [Column("figure", "name"), Column("before", "before", ".4g"), Column("after", "after", ".4g"),
               Column("change", "change", "+.3g"), Column("from", "low", "+.3g"),
               Column("to", "high", "+.3g")]  # fmt: skip
    return build(f"Before and after: {name}", columns, row["figures"],
                 f"{row['prompts']} prompts. From and to: the 95 % interval of the change.")  # fmt: skip


def _harness(name: str, row: Values) -> Table:
    columns = [Column("task", "task"), Column("metric", "metric"), Column("value", "value", ".4f"),
               Column("standard error", "standard_error", ".4f"), Column("samples", "samples", ","),
               Column("answer length, tokens", "mean_tokens", ".1f")]  # fmt: skip
    return build(f"lm-evaluation-harness: {name}", columns, row["tasks"], f"Model: {row['model']}.")
