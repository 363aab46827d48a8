"""What a sweep leaves: `sweep.json`, `sweep.md`, `winner.yaml`, and pictures of the settings against the measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.experiments.sweep import Plan, Ranked, is_number, words_of
from preftune.recipe import load_recipe


def write_sweep(plan: Plan, rows: Sequence[Ranked]) -> None:
    """Write all of it into the sweep's folder."""
    record = {
        "measure": plan.measure,
        "lower_is_better": plan.lower_is_better,
        "settings": [facts(row) for row in rows],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (plan.folder / "sweep.json").write_text(text, encoding="utf-8")
    (plan.folder / "sweep.md").write_text(page(plan, rows), encoding="utf-8")
    draw(plan, rows)
    winner = plan.folder / "winner.yaml"
    winner.unlink(missing_ok=True)
    if rows and rows[0].whole:
        recipe = load_recipe(plan.recipe, [*words_of(plan, rows[0].settings), "output_dir=runs/winner"])
        winner.write_text(f"# The best of {plan.folder}, by {plan.measure}.\n\n{recipe.to_yaml()}", encoding="utf-8")


def facts(row: Ranked) -> dict[str, Any]:
    """A setting with its measures and arms, for the record."""
    arms = [
        {"name": one.arm.name, "seed": one.arm.seed, "state": one.state, "said": one.said, "seconds": one.seconds}
        for one in row.outcomes
    ]
    measures = {
        name: {"mean": row.mean_of(name), "half_95": row.half_of(name), "by_seed": values}
        for name, values in row.values.items()
    }
    return {"settings": dict(row.settings), "measures": measures, "arms": arms}


def page(plan: Plan, rows: Sequence[Ranked]) -> str:
    """The table, the best setting first."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    header = [*keys, *plan.measures, "collapsed", "failed", "seconds"]
    lines = [
        f"# Sweep of {plan.recipe.name}",
        "",
        *about(plan),
        "Settings with a run that collapsed or failed come last, whatever the others reached, as do those whose "
        "measure is no number.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join([*(str(row.settings.get(key, '')) for key in keys), *cells(plan, row)])} |" for row in rows),
    ]
    return "\n".join([*lines, *faults(rows), ""])


def about(plan: Plan) -> list[str]:
    """What the figures are, in the words of a reader who was not there."""
    seeds = f"mean over seeds {', '.join(map(str, plan.seeds))}"
    seeds += ", with the 95 % interval of that mean (Student's t)" if len(plan.seeds) > 1 else ""
    order = f"{plan.measure}, {'lower' if plan.lower_is_better else 'higher'} is better"
    meanings = [f"{name}: {MEANINGS[name]}." for name in plan.measures if name in MEANINGS]
    return [f"Ranked by {order}; {seeds}.", *meanings]


MEANINGS = {
    "accuracy": "share of held-out pairs in order under the run's own implicit reward",
    "likelihood": "share of held-out pairs whose chosen response has the higher mean log-prob",
    "reward": "mean score of fresh answers under the reward model",
    "health": "nats a token by which held-out answers are less likely than before training",
}


def cells(plan: Plan, row: Ranked) -> list[str]:
    """Measures, counts of what did not end well, seconds."""
    states = [one.state for one in row.outcomes]
    counts = [str(states.count(state) or "") for state in ("collapsed", "failed")]
    return [*(_figure(row, name) for name in plan.measures), *counts, f"{sum(one.seconds for one in row.outcomes):.0f}"]


def _figure(row: Ranked, measure: str) -> str:
    mean, half = row.mean_of(measure), row.half_of(measure)
    return "" if mean is None else f"{mean:.4g}" if half is None else f"{mean:.4g} ± {half:.2g}"


def faults(rows: Sequence[Ranked]) -> list[str]:
    """A list of what did not end well, with its last words; empty where all did."""
    found = [f"- `{one.arm.name}`: {one.said}" for row in rows for one in row.outcomes if one.state != "done"]
    return ["", "What did not end well:", "", *found] if found else []


def draw(plan: Plan, rows: Sequence[Ranked]) -> None:
    """`heat-map.png` of two keys with several values each (means over the others), `parallel.png` of all keys."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tried = {key: _values(rows, key) for key in rows[0].settings if len(_values(rows, key)) > 1} if rows else {}
    with_value = [row for row in rows if is_number(row.mean)]
    if not with_value or not tried:
        return
    if len(tried) >= 2:
        figure = _heat_map(plt, plan, with_value, dict(list(tried.items())[:2]))
        figure.savefig(plan.folder / "heat-map.png", dpi=120)
        plt.close(figure)
    figure = _parallel(plt, plan, with_value, tried)
    figure.savefig(plan.folder / "parallel.png", dpi=120)
    plt.close(figure)


def _values(rows: Sequence[Ranked], key: str) -> list[Any]:
    """The different values of a key: numbers by size, else as they came."""
    found = list(dict.fromkeys(str(row.settings[key]) for row in rows))
    first = {str(row.settings[key]): row.settings[key] for row in rows}
    values = [first[text] for text in found]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return sorted(values)
    return values


def _heat_map(plt: Any, plan: Plan, rows: Sequence[Ranked], tried: Mapping[str, list[Any]]) -> Any:
    (down, downs), (across, acrosses) = tried.items()
    figure, axes = plt.subplots(figsize=(1.5 + 1.1 * len(acrosses), 1.5 + 0.7 * len(downs)), layout="constrained")
    cells = [[_mean_at(rows, {down: y, across: x}) for x in acrosses] for y in downs]
    picture = axes.imshow(cells, cmap="viridis_r" if plan.lower_is_better else "viridis", aspect="auto")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            axes.text(x, y, "" if value != value else f"{value:.3g}", ha="center", va="center", color="white")
    axes.set_xticks(range(len(acrosses)), [str(value) for value in acrosses])
    axes.set_yticks(range(len(downs)), [str(value) for value in downs])
    axes.set(xlabel=across, ylabel=down, title=plan.measure)
    figure.colorbar(picture)
    return figure


def _mean_at(rows: Sequence[Ranked], wanted: Mapping[str, Any]) -> float:
    means = [row.mean for row in rows if row.mean is not None and wanted.items() <= row.settings.items()]
    return sum(means) / len(means) if means else float("nan")


def _parallel(plt: Any, plan: Plan, rows: Sequence[Ranked], tried: Mapping[str, list[Any]]) -> Any:
    """One line a setting through its value of each key to its measure; the better, the brighter."""
    figure, axes = plt.subplots(figsize=(2 + 1.6 * (len(tried) + 1), 4), layout="constrained")
    means = [row.mean for row in rows if row.mean is not None]
    low, spread = min(means), (max(means) - min(means)) or 1.0
    for row in rows:
        share = ((row.mean or 0.0) - low) / spread
        places = [values.index(row.settings[key]) / (len(values) - 1) for key, values in tried.items()]
        better = 1 - share if plan.lower_is_better else share
        axes.plot([*places, share], color=plt.get_cmap("viridis")(better), linewidth=1.5)
    for place, values in enumerate(tried.values()):
        for index, value in enumerate(values):
            axes.text(place + 0.03, index / (len(values) - 1), str(value), fontsize=8, va="center")
    for at, value in ((0.0, low), (1.0, low + spread)):
        axes.text(len(tried) + 0.03, at, f"{value:.4g}", fontsize=8, va="center")
    axes.set_xticks(range(len(tried) + 1), [*tried, plan.measure])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(tried) + 0.5)
    axes.grid(axis="x")
    return figure
