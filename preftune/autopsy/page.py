"""What an autopsy leaves in the run folder: `autopsy.md`, `autopsy.json`, and `autopsy-pairs.jsonl` with every pair.

Rows stand in the order of their mean margin over all visits, the lowest first: the area under the margin, by which
Pleiss et al. 2020, arXiv:2001.10528, rank mislabelled data.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from preftune.autopsy.examine import CONTRADICT, LENGTH, LISTS, Autopsy
from preftune.autopsy.findings import GAINED, LOST, NEVER
from preftune.data.sources import excerpt
from preftune.errors import DataError

PAGE, RECORD, PAIRS = "autopsy.md", "autopsy.json", "autopsy-pairs.jsonl"
MEANINGS = {
    NEVER: "never separate: right at no visit",
    LOST: "flip, lost: right at some visit, wrong at the last",
    GAINED: "flip, gained: wrong at the first visit, right at the last (what training is for)",
    CONTRADICT: "contradict their neighbours: near-duplicates prefer the opposite",
    LENGTH: "separate by length alone: right, and not without the length's part of the margin",
}


def write_autopsy(found: Autopsy, shown: int = 20) -> Path:
    """All three; returns the page. `shown`: rows of each list on the page.

    Raises:
        DataError: they cannot be written.
    """
    texts = {
        PAGE: page(found, shown),
        RECORD: json.dumps(record(found), indent=1, ensure_ascii=False) + "\n",
        PAIRS: "".join(json.dumps(pair_facts(found, n), ensure_ascii=False) + "\n" for n in range(len(found.pairs))),
    }
    try:
        for name, text in texts.items():
            (found.run / name).write_text(text, encoding="utf-8")
    except OSError as cause:
        raise DataError(f"{found.run}: the page cannot be written there ({cause.strerror}).") from None
    return found.run / PAGE


def record(found: Autopsy) -> dict[str, Any]:
    """The figures, and the rows of each list, the lowest mean margin first."""
    visits = [len(pair.margins) for pair in found.pairs]
    return {
        "run": str(found.run),
        "objective": found.recipe.objective,
        "margins_of": "checkpoints" if found.scored else "training",
        "pairs": len(found.pairs),
        "visits": sum(visits),
        "visits_a_pair": {"least": min(visits), "most": max(visits)},
        "by_visit": by_visit(found),
        "length": {"slope": found.length.slope, "explained": found.length.explained},
        "counts": {name: len(found.lists[name]) for name in LISTS},
        "lists": {name: [pair_facts(found, n) for n in found.lists[name]] for name in LISTS},
    }


def by_visit(found: Autopsy) -> list[dict[str, float]]:
    """Of the first visits of all pairs, of their second ones, ...: the share that is right, and the margins."""
    lines = []
    for visit in range(max(len(pair.margins) for pair in found.pairs)):
        margins = np.array([pair.margins[visit] for pair in found.pairs if len(pair.margins) > visit])
        tenth, middle, last = np.quantile(margins, (0.1, 0.5, 0.9)).tolist()
        quantiles = {"p10": tenth, "p50": middle, "p90": last}
        lines.append({"visit": visit + 1, "pairs": len(margins), "right": float((margins > 0).mean()), **quantiles})
    return lines


def pair_facts(found: Autopsy, place: int) -> dict[str, Any]:
    """One pair: where it stands in the data, its trajectory, and the lists it is on."""
    pair = found.pairs[place]
    facts: dict[str, Any] = {
        "source": pair.source,
        "row": pair.row,
        "digest": pair.digest,
        "steps": pair.steps,
        "margins": pair.margins,
        "mean_margin": float(f"{pair.mean:.6g}"),
        "tokens": [pair.chosen, pair.rejected],
        "without_length": float(f"{found.length.without_length(pair):.6g}"),
        "lists": found.names[place],
    }
    against = found.contradictions.get(place)
    if against is not None:
        other = found.pairs[against.other]
        facts["neighbour"] = {
            "source": other.source,
            "row": other.row,
            "cosine": round(against.cosine, 3),
            "exchanged": against.exact,
            "against": against.against,
            "agreeing": against.agreeing,
        }
    return facts


def summary(found: Autopsy) -> list[tuple[str, int, float]]:
    """(what, how many pairs, their share)."""
    return [(MEANINGS[name], len(found.lists[name]), len(found.lists[name]) / len(found.pairs)) for name in LISTS]


def page(found: Autopsy, shown: int = 20) -> str:
    """The page, as Markdown."""
    visits = [len(pair.margins) for pair in found.pairs]
    times = f"{min(visits)}" if min(visits) == max(visits) else f"{min(visits)} to {max(visits)}"
    where = "under the start and each checkpoint of the run" if found.scored else "when they were trained on"
    lines = [
        f"# Autopsy of {found.run}",
        "",
        f"{len(found.pairs)} pairs, {found.recipe.objective}; the margin of each was taken {times} times, {where}.",
        "A pair is right where its margin (reward of the chosen response minus that of the rejected one) is above 0.",
        *_of_one_source(found),
        *_warning(found, min(visits)),
        "",
        "| pairs that | number | share |",
        "|---|---|---|",
        *(f"| {what} | {count} | {share:.1%} |" for what, count, share in summary(found)),
        "",
        f"Length: a token that the chosen response is longer moves the margin by {found.length.slope:.3g}, and",
        f"differences in length explain {found.length.explained:.1%} of the variance of the last margins.",
        "",
        "## All pairs, by visit",
        "",
        "| visit | pairs | right | margin: 10 % below | median | 10 % above |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one['visit']} | {one['pairs']} | {one['right']:.1%} | {one['p10']:.3g} | {one['p50']:.3g} "
            f"| {one['p90']:.3g} |"
            for one in by_visit(found)
        ),
    ]
    for name in (NEVER, LOST, CONTRADICT, LENGTH, GAINED):
        lines += _list(found, name, shown)
    overlaps = Counter(map(tuple, found.names))
    several = [(names, count) for names, count in overlaps.most_common() if len(names) > 1]
    if several:
        lines += ["", "## On more than one list", ""]
        lines += [f"* {' and '.join(names)}: {count}" for names, count in several]
    return "\n".join([*lines, ""])


def _of_one_source(found: Autopsy) -> list[str]:
    sources = {pair.source for pair in found.pairs}
    return [f"All rows are of `{sources.pop()}`."] if len(sources) == 1 else []


def _warning(found: Autopsy, least: int) -> list[str]:
    if least > 2:
        return []
    return [
        "",
        "Some pairs were seen once or twice only, which says little of what they became: `--checkpoints` scores all of",
        "them with the models that the run has left.",
    ]


def _list(found: Autopsy, name: str, shown: int) -> list[str]:
    own = found.lists[name]
    lines = ["", f"## {name}: {len(own)}", "", f"Pairs that {MEANINGS[name]}."]
    if not own:
        return lines
    more = f" The first {shown}; all are in `{RECORD}`." if len(own) > shown else ""
    lines[-1] += f" Lowest mean margin first.{more}"
    lines += ["", "| row | margins | tokens | chosen | rejected |" + (" against it |" if name == CONTRADICT else ""),
              "|---|---|---|---|---|" + ("---|" if name == CONTRADICT else "")]  # fmt: skip
    return lines + [_row(found, place, name) for place in own[:shown]]


def _row(found: Autopsy, place: int, name: str) -> str:
    pair, example = found.pairs[place], found.example(place)
    texts = ("", "") if example is None else (example.responses[0], example.responses[-1])
    one = len({pair.source for pair in found.pairs}) == 1
    cells = [
        str(pair.row if one else pair),
        _trajectory(pair.margins),
        f"{pair.chosen} / {pair.rejected}",
        *(_cell(text) for text in texts),
    ]
    if name == CONTRADICT:
        against = found.contradictions[place]
        said = "the same pair exchanged" if against.exact else f"cosine {against.cosine:.2f}"
        other = found.pairs[against.other]
        cells.append(f"{other.row if one else other} ({said}; {against.against} against, {against.agreeing} agreeing)")
    return f"| {' | '.join(cells)} |"


def _trajectory(margins: tuple[float, ...]) -> str:
    ends = [f"{margin:.3g}" for margin in margins]
    return ", ".join(ends if len(ends) <= 6 else [*ends[:3], "…", *ends[-2:]])


def _cell(text: str) -> str:
    return (excerpt(text, 60) if text else "").replace("|", "\\|").replace("<", "&lt;")
