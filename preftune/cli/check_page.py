"""The report of `preftune check` as a page: figures, decoded rows, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from preftune.objectives.base import Baseline
from preftune.types import Layout

if TYPE_CHECKING:
    from preftune.data import TokenizationReport
    from preftune.train.check import CheckReport
    from preftune.types import TokenizedGroup

SCORED = "green"
SHOWN_PROMPT, SHOWN_RESPONSE = 700, 500  # characters of a decoded text; the middle of a longer one is left out
PURPOSES = {
    "weights": "weights",
    "cast_weights": "weights in the compute type",
    "gradients": "gradients",
    "master": "float32 master",
    "moments": "optimizer's moments",
    "reference": "reference model",
    "activations": "activations",
    "workspace": "workspace",
    "head": "head",
    "buffers": "engine's buffers",
}


def print_report(report: CheckReport, *, examples: int, ids: bool) -> None:
    """Print the page; scored tokens are coloured on a terminal, and stand between ⟦ and ⟧ elsewhere."""
    console = Console(soft_wrap=True, highlight=False)
    for title, lines in _sections(report):
        console.print(Text(title, "bold"))
        for line in lines:
            console.print(Text(f"  {line}"))
    _print_examples(console, report, examples, ids)
    console.print(Text("Warnings", "bold"))
    for line in report.warnings or ["none"]:
        console.print(Text(f"  {line}", "yellow" if report.warnings else ""))


def _sections(report: CheckReport) -> Iterator[tuple[str, list[str]]]:
    yield "Columns", [f"{name}: {mapping}" for name, mapping in report.mappings.items()]
    if report.notes:
        yield "Notes", [line for note in report.notes for line in note.splitlines()]
    yield "Rows", list(_rows(report))
    yield "Tokens, before anything is cut", _lengths(report)
    if report.survey.bias is not None:
        yield "Length of the better and the worse response", list(_bias(report))
    yield "Beginnings and ends", list(_ends(report))
    yield "Tokens of one epoch", _savings(report)
    yield "Run", list(_run(report))
    yield "Memory, an estimate", list(_memory(report))


def _rows(report: CheckReport) -> Iterator[str]:
    tokens, counts = report.tokens, report.survey
    left_out = sum(report.dropped.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
    yield f"{tokens.rows} to train on, {left_out} left out" + (f": {reasons}" if reasons else "")
    limit = f"max_length {report.recipe.max_length}, {report.recipe.truncation}"
    if tokens.rows_cut:
        yield f"{tokens.rows_cut} cut ({limit}): {_cuts(tokens)}"
    else:
        yield f"none cut ({limit})"
    repeated = f", one of them in {counts.most_repeated} rows" if counts.most_repeated > 1 else ""
    yield f"{counts.duplicates} equal to an earlier one; {counts.prompts} different prompts{repeated}"
    if counts.conflicts:
        yield f"{counts.conflicts} that an earlier one has the other way round"
    yield f"{counts.with_system} with a system text, {counts.multi_turn} of several turns"
    if tokens.special_rows:
        what = "text" if tokens.special_as_text else "control tokens"
        yield f"{tokens.special_rows} spell out special tokens: encoded as {what}"
    if report.held_out is not None:
        held = report.held_out
        yield f"{held.rows} held out ({held.dropped} left out), {held.seen} of them with a prompt that is trained on"


def _cuts(tokens: TokenizationReport) -> str:
    return f"{_many(tokens.prompts_cut, 'prompt')}, {_many(tokens.responses_cut, 'response')}"


def _lengths(report: CheckReport) -> list[str]:
    lines = [f"{'':<12}{'mean':>8}{'median':>8}{'90 %':>8}{'99 %':>8}{'longest':>8}"]
    for name, one in report.tokens.lengths.items():
        lines.append(f"{name:<12}{one.mean:>8.0f}{one.p50:>8}{one.p90:>8}{one.p99:>8}{one.max:>8}")
    return lines


def _bias(report: CheckReport) -> Iterator[str]:
    bias = report.survey.bias
    assert bias is not None
    better, worse = _names(report)
    if bias.pairs:
        sides = ((better, bias.better_longer), (worse, bias.worse_longer))
        said = [f"{name} is longer in {100 * count / bias.pairs:.0f} %" for name, count in sides]
        yield f"{', '.join(said)} of {bias.pairs} pairs; median difference {bias.difference:+g} tokens"
    means = [f"{name} {mean:.0f}" for name, mean in ((better, bias.better_mean), (worse, bias.worse_mean)) if mean]
    related = "" if bias.correlation is None else f"; correlation of label and length {bias.correlation:+.2f}"
    yield f"mean tokens, as cut: {', '.join(means)}{related}"


def _ends(report: CheckReport) -> Iterator[str]:
    counts = report.survey
    yield f"BOS: {report.tokens.bos}: {counts.one_bos} of {counts.kept} prompts"
    yield f"end of turn: {report.tokens.end_of_turn}: {counts.ended} of {counts.responses} responses"


def _savings(report: CheckReport) -> list[str]:
    one = report.savings
    lines = {
        f"padded, {one.padded_groups} rows a batch": one.padded,
        "packed, prompt repeated": one.unshared,
        "packed, prompt shared": one.shared,
    }
    shown = [f"{name:<26}{tokens:>14,}  {_times(one.padded, tokens)}" for name, tokens in lines.items()]
    if one.tokens not in lines.values():
        shown.append(f"{'this run (road: padded)':<26}{one.tokens:>14,}")
    return shown


def _times(padded: int, tokens: int) -> str:
    return "" if tokens == padded else f"{padded / tokens:.2f} times fewer"


def _run(report: CheckReport) -> Iterator[str]:
    one, objective = report.savings, report.recipe.objective
    yield f"{objective}: {_many(report.steps, 'step')} of {_many(report.batch, 'row')} ({one.steps} an epoch)"
    yield (
        f"{one.tokens:,} tokens an epoch in {_many(one.micro_batches, 'micro-batch', 'es')} a process, the largest of "
        f"{one.fullest:,} tokens"
    )
    if report.recipe.build_objective().baseline == Baseline.PROBES:
        yield f"{objective} feeds a mismatched response to every prompt besides: its tokens come on top"


def _many(count: int, name: str, plural: str = "s") -> str:
    return f"{count:,} {name}{plural * (count != 1)}"


def _memory(report: CheckReport) -> Iterator[str]:
    memory = report.memory
    if memory is None:
        yield f"none: {report.no_memory}"
        return
    yield f"{memory.parameters:,} parameters, {memory.trainable:,} of them trained"
    parts = [f"{PURPOSES[name]} {in_gib(gib)}" for name, gib in memory.parts.items()]
    yield f"{in_gib(memory.total)} in one process, unsharded: {', '.join(parts)}"
    yield f"that is in its {memory.moment}; left out: libraries, the allocator's reserve, CUDA itself"
    yield "preftune plan says it for several devices and engines"


def in_gib(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 10 else f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"


# --- decoded rows


def _print_examples(console: Console, report: CheckReport, count: int, ids: bool) -> None:
    groups = report.groups[:count]
    if not groups:
        return
    how = SCORED if console.is_terminal else "between ⟦ and ⟧"
    console.print(Text(f"Examples (what enters the log-prob: {how})", "bold"))
    better, worse = _names(report)
    for group in groups:
        console.print(Text(f"  {group.origin}", "underline"))
        _print_part(console, report.tokenizer, "prompt", group.prompt_ids, scored=False, ids=ids)
        for name, response in zip(_response_names(group, better, worse), group.response_ids, strict=True):
            _print_part(console, report.tokenizer, name, response, scored=True, ids=ids)


def _print_part(console: Console, tokenizer: Any, name: str, tokens: Sequence[int], *, scored: bool, ids: bool) -> None:
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text = _shortened(text, SHOWN_RESPONSE if scored else SHOWN_PROMPT)
    coloured = scored and console.is_terminal
    if scored and not coloured:
        text = f"⟦{text}⟧"
    line = Text(f"  {name} ({len(tokens)} tokens): ", "bold" if console.is_terminal else "")
    console.print(line.append(text.replace("\n", "\n    "), "not bold " + SCORED if coloured else "not bold"))
    if ids:
        console.print(Text(f"    ids {list(tokens)}", "dim" if console.is_terminal else ""))


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"


def _names(report: CheckReport) -> tuple[str, str]:
    layout = report.recipe.build_objective().layout
    if layout is Layout.UNPAIRED:
        return "desirable", "undesirable"
    return ("best", "worst") if layout is Layout.RANKED else ("chosen", "rejected")


def _response_names(group: TokenizedGroup, better: str, worse: str) -> list[str]:
    count = len(group.response_ids)
    if count == 1:
        return [(better if group.scores[0] > 0 else worse) if group.scores else "response"]
    return [better, worse] if count == 2 else [f"rank {place}" for place in range(count)]
