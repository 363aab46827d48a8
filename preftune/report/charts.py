"""Curves of runs as inline SVG: the charts of a run's plots, all runs in one picture.

With one run a chart holds its lines as they are; with several each line is a chart of its own, where
each run has a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.report.collect import Run
from preftune.report.markup import Markup, element, join
from preftune.train.plots import CHARTS, Points

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 10, 40
TICKS = 5
COLOURS = 8  # that the page's style has, --c0 to --c7
DOTS = 40  # points up to which each has a dot


@dataclass(frozen=True)
class Picture:
    """One chart: named series of (step, value)."""

    title: str
    y_label: str
    series: list[tuple[str, Points]]


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """What the logs of the runs have, in the order of a run's plots."""
    found = []
    for chart in CHARTS:
        if len(runs) == 1:
            lines = [(label, points_of(runs[0], key)) for key, label in chart.lines]
            found.append(Picture(chart.title, chart.y_label, [line for line in lines if line[1]]))
            continue
        for key, label in chart.lines:
            lines = [(run.name, points_of(run, key)) for run in runs]
            title = chart.title if label == chart.y_label else f"{chart.title}: {label}"
            found.append(Picture(title, chart.y_label, [line for line in lines if line[1]]))
    return [picture for picture in found if picture.series]


def points_of(run: Run, key: str) -> Points:
    """(step, value) of every record that has the key, as logged."""
    return [(record["step"], record[key]) for record in run.records if record.get(key) is not None]


def draw(picture: Picture) -> Markup:
    """The picture as a figure with its caption and legend."""
    clean = [[point for point in points if math.isfinite(point[1])] for _, points in picture.series]
    lost = sum(len(points) for _, points in picture.series) - sum(map(len, clean))
    caption = picture.title + (f" ({lost} values that are not finite are left out)" if lost else "")
    names = [name for name, _ in picture.series]
    legend = [
        element("span", element("i", style=f"background:var(--c{at % COLOURS})"), name) for at, name in enumerate(names)
    ]
    parts = [element("figcaption", caption)]
    if any(clean):
        parts.append(_plot(picture, clean))
    if len(names) > 1:
        parts.append(element("p", *legend, class_="legend"))
    return element("figure", *parts)


def _plot(picture: Picture, series: Sequence[Points]) -> Markup:
    first, last = _range([x for points in series for x, _ in points])
    ys = ticks(*_range([y for points in series for _, y in points]))

    def place(x: float, y: float) -> tuple[str, str]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    parts = []
    for value in ys:
        _, down = place(first, value)
        parts += [element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down, y2=down, class_="grid"),
                  element("text", f"{value:.6g}", x=LEFT - 6, y=float(down) + 4, text_anchor="end")]  # fmt: skip
    for value in [tick for tick in ticks(first, last) if first <= tick <= last]:
        across, _ = place(value, ys[0])
        parts.append(element("text", f"{value:.6g}", x=across, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(element("text", "optimizer step", x=(LEFT + WIDTH) / 2, y=HEIGHT - 6, text_anchor="middle"))
    parts.append(element("text", picture.y_label, x=-(HEIGHT - BOTTOM) / 2, y=12, text_anchor="middle",
                         transform="rotate(-90)"))  # fmt: skip
    for at, points in enumerate(series):
        parts += _line([place(x, y) for x, y in points], at)
    return element("svg", join(parts), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=picture.title)


def _line(places: Sequence[tuple[str, str]], at: int) -> list[Markup]:
    colour = f"var(--c{at % COLOURS})"
    path = " ".join(f"{across},{down}" for across, down in places)
    line = element("polyline", points=path, style=f"stroke:{colour}", class_="line")
    if len(places) > DOTS:
        return [line]
    return [line, *(element("circle", cx=x, cy=y, r=2.5, style=f"fill:{colour}") for x, y in places)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        wide = abs(low) / 2 or 1.0
        return low - wide, high + wide
    return low, high


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart, the first at most `low` and the last at least `high`."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]
