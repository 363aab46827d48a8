"""A report as one HTML page that needs nothing beside itself, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.report.charts import Picture, draw
from preftune.report.collect import Samples
from preftune.report.markup import Markup, element, join
from preftune.report.tables import Cell, Table

SHOWN = 20  # rows of samples; a line says how many there are
CELL_CHARACTERS = 300  # of an answer in Markdown
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c2024;--soft:#60646c;--edge:#d9d9e0;--head:#f2f2f5;--c0:#0b68cb;
--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#c2255c;--c5:#087f8c;--c6:#8f6a00;--c7:#5c5f66}
@media(prefers-color-scheme:dark){:root{--back:#17181b;--text:#edeef0;--soft:#a0a4ad;--edge:#3a3c42;--head:#222428;
--c0:#6cb2ff;--c1:#ff9b6a;--c2:#6fd08c;--c3:#d59bf0;--c4:#ff8fb3;--c5:#5fd3de;--c6:#e3bd4d;--c7:#b7bac1}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:24px 20px 64px;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:26px;margin:0 0 4px}h2{font-size:20px;margin:40px 0 8px}h3{font-size:16px;margin:24px 0 6px}
p{margin:6px 0;color:var(--soft)}
.wide{overflow-x:auto;border:1px solid var(--edge);border-radius:6px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td{overflow-wrap:anywhere}th,td{padding:6px 10px;text-align:left;vertical-align:top;border-top:1px solid var(--edge)}
th{background:var(--head);border-top:0;font-weight:600;white-space:nowrap}
td[data-value]{text-align:right;white-space:nowrap}th.number{text-align:right}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:16px}
figure{margin:0;padding:10px 12px;border:1px solid var(--edge);border-radius:6px;min-width:0}
figcaption{font-weight:600;overflow-wrap:anywhere}svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--edge)}.line{fill:none;stroke-width:2}
.legend span{display:inline-block;margin-right:14px;overflow-wrap:anywhere}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.samples table{table-layout:fixed}.samples td{white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:600px){.samples table,.samples tbody,.samples tr,.samples td{display:block}.samples thead{display:none}
.samples tr{border-top:2px solid var(--edge)}.samples td{border:0;padding:4px 10px}
.samples td::before{content:attr(data-heading);display:block;color:var(--soft);font-size:12px}}
"""


@dataclass(frozen=True)
class Report:
    """tables: heading of a part -> its tables."""

    title: str
    tables: dict[str, list[Table]]
    pictures: list[Picture]
    samples: list[Samples]


def to_html(report: Report) -> str:
    """The page. A cell with a number has it in full in `data-value`."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", report.title),
        element("style", Markup(STYLE)),
    ]
    body = [element("h1", report.title)]
    for part, tables in report.tables.items():
        body += [element("h2", part), *(_html_table(table) for table in tables)] if tables else []
        if part == TRAINING and report.pictures:
            body.append(element("h2", "Curves"))
            body.append(element("div", *map(draw, report.pictures), class_="charts"))
    if report.samples:
        body.append(element("h2", "Answers side by side"))
        body += [_html_samples(samples) for samples in report.samples]
    page = element("html", element("head", join(head)), element("body", join(body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


TRAINING = "Training"


def _html_table(table: Table) -> Markup:
    numeric = [any(row[at].value is not None for row in table.rows) for at in range(len(table.headings))]
    heads = [
        element("th", heading, class_="number") if number else element("th", heading)
        for heading, number in zip(table.headings, numeric, strict=True)
    ]
    rows = [element("tr", *map(_html_cell, row)) for row in table.rows]
    drawn = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    parts = [element("h3", table.title), element("div", drawn, class_="wide")]
    return element("section", *parts, *([element("p", table.note)] if table.note else []))


def _html_cell(cell: Cell) -> Markup:
    return element("td", cell.text) if cell.value is None else element("td", cell.text, data_value=repr(cell.value))


def _html_samples(samples: Samples) -> Markup:
    heads = element("tr", *(element("th", heading) for heading in samples.headings))
    rows = [
        element("tr", *(element("td", text or "(empty)", data_heading=heading)
                        for text, heading in zip(row, samples.headings, strict=True)))
        for row in samples.rows[:SHOWN]
    ]  # fmt: skip
    drawn = element("table", element("thead", heads), element("tbody", *rows))
    return element("section", element("h3", samples.title), element("p", _shown(samples)),
                   element("div", drawn, class_="wide"), class_="samples")  # fmt: skip


def _shown(samples: Samples) -> str:
    there = len(samples.rows)
    return f"The first {SHOWN} of {there} rows." if there > SHOWN else f"{there} row{'s' if there > 1 else ''}."


# --- Markdown


def to_markdown(report: Report) -> str:
    """The tables and the answers; curves are in the page alone."""
    parts = [f"# {plain(report.title)}"]
    for part, tables in report.tables.items():
        parts += [f"## {part}", *map(_markdown_table, tables)] if tables else []
    if report.samples:
        parts.append("## Answers side by side")
    for samples in report.samples:
        rows = [[plain(text[:CELL_CHARACTERS]) or "(empty)" for text in row] for row in samples.rows[:SHOWN]]
        parts += [f"### {plain(samples.title)}", _shown(samples), _lines(samples.headings, rows)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = _lines(table.headings, [[plain(cell.text) for cell in row] for row in table.rows])
    return "\n\n".join([f"### {plain(table.title)}", lines, *([plain(table.note)] if table.note else [])])


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[plain(heading) for heading in headings], ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """One line that can neither break a table nor be taken for Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
