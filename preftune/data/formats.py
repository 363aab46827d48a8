"""Rows to examples, in the layout that an objective trains on.

In: rows of a file. Out: `Example`s, a conversation that ends before the answer, and the answers: one (single), two
(paired, chosen first), one with its label (unpaired), or any number, best first (ranked). The columns decide the form
once for all rows; whether a value is text or a list of messages is looked at row by row. Understood:

    prompt + chosen + rejected              text, a message {role, content}, {from, value} or {role, text}, or a list of
                                            messages; with chosen_score + rejected_score, or margin; a list of several
                                            rejected texts gives several pairs
    chosen + rejected                       whole conversations that share their history: lists of messages, or the text
                                            "Human: ... Assistant: ..." (`preftune.data.transcripts`)
    query + response + rejected_response    with history ([[question, answer], ...]) and system
    prompt + answer_1 + answer_2 + winner   and what else two answers side by side are called (`preftune.data.winners`)
    prompt + response, prompt + completion, query + response, instruction + input + output, messages    (single)
    the same + label, kto_tag, desirable or tag: true or false, 1 or 0                                  (unpaired)
    prompt + responses                      with scores or ranks (`preftune.data.ranked`)               (ranked)

Beside any of these, `weight` (a number of at least 0 that multiplies the row's loss) and `tools` (a list of JSON
schemas for the chat template, or its JSON text). Columns of other names (ids) are not used; the mapping lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import get_args

from preftune.data.bad_rows import BadRowError, OnBadRow, Problem, SkippedRows
from preftune.data.columns import ColumnMapping, Columns, recognise
from preftune.data.labels import to_label
from preftune.data.names import COMPARED, MARGIN
from preftune.data.ranked import RankedPairs, read_ranked, to_pairs
from preftune.data.reader import (
    ROLES,
    RowReader,
    build_example,
    read_answer,
    read_prompt,
    shared_history,
    to_answer,
)
from preftune.data.sources import Row, excerpt
from preftune.data.winners import TIE, majority, verdict
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Layout, Message

log = logging.getLogger(__name__)


def to_examples(
    rows: Sequence[Row],
    layout: Layout | str,
    columns: Columns | None = None,
    *,
    ranked_pairs: RankedPairs = "best_worst",
    on_bad_row: OnBadRow = "error",
    skipped: SkippedRows | None = None,
    mappings: dict[str, ColumnMapping] | None = None,
) -> list[Example]:
    """Turn every row into an `Example`, or into several; the log says how many became of how many.

    Args:
        layout:
            paired: rows with chosen and rejected, or ranked rows, see `ranked_pairs`.
            unpaired: rows with one answer and a label (scores 1 or 0), or pairs, split into such rows.
            ranked: rows with several responses, best first (scores as the file has them), or pairs, as two responses.
            single: rows with one answer; the chosen one of a pair, the best of a ranked row.
            prompt: any of these, or rows with a prompt alone; answers are left out, whatever they are.
        columns: the file's name to one above, `{"question": "prompt", "answer_zh": "chosen"}`; None = ignore it.
        ranked_pairs: of ranked rows read as pairs: `best_worst`, one a row, or `all`, every better one against every
            worse one.
        on_bad_row: `error` stops at the first row that is wrong; `skip` leaves such rows out and warns with the count.
        skipped: takes up that count, by problem and with the first rows of each; may be given to several calls.
        mappings: takes up what was understood of the columns, under the name of the file.

    The scores of a pair are its two score columns, or (margin, 0); of none, if the file has none. Pairs whose scores
    contradict their order are kept as pairs, with a warning, and refused as ranked rows.

    Raises:
        DataError: the columns give no form that `layout` takes, a row is wrong, or with `skip` all of them are; the
            message starts with the row's origin.
        RecipeError: `layout`, `ranked_pairs`, `on_bad_row` or a target in `columns` is not known.
    """
    if ranked_pairs not in get_args(RankedPairs):
        raise RecipeError(f"'ranked_pairs' is {ranked_pairs!r}; expected 'best_worst' or 'all'.")
    if on_bad_row not in get_args(OnBadRow):
        raise RecipeError(f"'on_bad_row' is {on_bad_row!r}; expected 'error' or 'skip'.")
    mapping = recognise(rows, layout, columns)
    log.info("%s: read as %s", _where(rows), mapping)
    if mappings is not None:
        mappings[_where(rows)] = mapping
    here = SkippedRows()
    read = read_rows(rows, mapping, on_bad_row, here)
    if here.total:
        log.warning("%s: %s", _where(rows), here)
    if skipped is not None:
        skipped.update(here)
    examples = to_layout(read, mapping, ranked_pairs)
    _say_what_became(read, examples, mapping, ranked_pairs, _where(rows))
    return examples


def read_rows(
    rows: Sequence[Row], mapping: ColumnMapping, on_bad_row: OnBadRow, skipped: SkippedRows, *, all_bad: bool = False
) -> list[list[Example]]:
    """The examples of each good row; the bad ones are counted in `skipped`.

    Args:
        all_bad: rows of which none is good are let pass.
    """
    read_row = _compared if mapping.winners else READERS[mapping.form]
    if mapping.layout is Layout.PROMPT:
        read_row = _prompt
    read: list[list[Example]] = []
    first_bad: BadRowError | None = None
    for row in rows:
        try:
            read.append(read_row(RowReader(row, mapping)))
        except BadRowError as bad:
            if on_bad_row == "error":
                raise DataError(str(bad)) from bad
            first_bad = first_bad or bad
            skipped.add(bad)
    skipped.read += len(rows)
    if first_bad is not None and not read and not all_bad:
        raise DataError(
            f"{first_bad} This is the first of {len(rows)} rows, which are all bad: none is left to train on."
        )
    return read


def to_layout(read: Sequence[Sequence[Example]], mapping: ColumnMapping, ranked_pairs: RankedPairs) -> list[Example]:
    """The examples of rows, from the form of their file to the layout that is wanted."""
    examples = [example for several in read for example in several]
    match mapping.form, mapping.layout:
        case Layout.PAIRED, Layout.SINGLE:
            return [pairs[0].pick(0, scores=()) for pairs in read]
        case Layout.PAIRED, Layout.UNPAIRED:
            return _split(read)
        case Layout.RANKED, Layout.PAIRED:
            return [pair for example in examples for pair in to_pairs(example, ranked_pairs)]
        case Layout.RANKED, Layout.SINGLE:
            return [example.pick(0, scores=()) for example in examples]
    return examples


# --- one row


def _single(reader: RowReader) -> list[Example]:
    history, response = read_answer(reader, "response")
    return [build_example(reader, read_prompt(reader, history, "response"), [response])]


def _pair(reader: RowReader) -> list[Example]:
    """The pair, or one for each rejected answer."""
    history, chosen = read_answer(reader, "chosen")
    rejected = _rejected(reader)
    shared = shared_history(reader, [history, *(history for history, _ in rejected)])
    names = f"'{reader.name('chosen')}' and '{reader.name('rejected')}'"
    for _, answer in rejected:
        _check_different(reader, chosen, answer, names)
    prompt = read_prompt(reader, shared, "chosen")
    scores = _pair_scores(reader)
    return [build_example(reader, prompt, [chosen, answer], scores) for _, answer in rejected]


def _rejected(reader: RowReader) -> list[tuple[tuple[Message, ...], str]]:
    value, where = reader.value("rejected"), f"'{reader.name('rejected')}'"
    if isinstance(value, list) and value and (isinstance(value[0], str | list) or _are_answers(value)):
        return [to_answer(reader, item, f"{where} item {place}") for place, item in enumerate(value, 1)]
    return [read_answer(reader, "rejected")]


def _are_answers(turns: Sequence[object]) -> bool:
    """Whether they are several messages of the assistant, which is no conversation."""
    roles = [turn.get("role", turn.get("from")) if isinstance(turn, dict) else None for turn in turns]
    return len(turns) > 1 and all(isinstance(role, str) and ROLES.get(role) == "assistant" for role in roles)


def _compared(reader: RowReader) -> list[Example]:
    """The two answers, the one that won first."""
    first, second = (reader.name(role) for role in COMPARED)
    winner = majority([_verdict(reader, role, (first, second)) for role in reader.mapping.winners])
    if winner == TIE:
        names = " and ".join(f"'{reader.name(role)}'" for role in reader.mapping.winners)
        sentence = f"{names} {'calls' if len(reader.mapping.winners) == 1 else 'call'} it a tie"
        raise reader.wrong(Problem.TIE, sentence, "A pair needs a better answer: delete the row")
    read = [read_answer(reader, role) for role in COMPARED]
    history = shared_history(reader, [history for history, _ in read])
    answers = [answer for _, answer in read]
    _check_different(reader, answers[0], answers[1], f"'{first}' and '{second}'")
    prompt = read_prompt(reader, history, COMPARED[0])
    return [build_example(reader, prompt, [answers[winner], answers[1 - winner]])]


def _verdict(reader: RowReader, role: str, answers: tuple[str, str]) -> int:
    expected = f"which of '{answers[0]}' and '{answers[1]}' is better"
    value = reader.value(role, expected)
    said = verdict(value, role, answers)
    if said is None:
        remedy = "Write the number or the name of the better answer, or delete the row"
        raise reader.unlike(value, f"'{reader.name(role)}'", expected, remedy)
    return said


def _check_different(reader: RowReader, one: str, other: str, names: str) -> None:
    if one == other:
        sentence = f"{names} are the same ({excerpt(one)})"
        raise reader.wrong(Problem.EQUAL_ANSWERS, sentence, "A pair needs two different answers: delete the row")


def _labelled(reader: RowReader) -> list[Example]:
    (example,) = _single(reader)
    expected = "true or false (or 1 or 0)"
    value = reader.value("label", expected)
    label = to_label(value)
    if label is None:
        remedy = "Write true for a desirable answer and false for an undesirable one, or delete the row"
        raise reader.unlike(value, f"'{reader.name('label')}'", expected, remedy)
    return [example.pick(0, scores=(label,))]


def _ranked(reader: RowReader) -> list[Example]:
    return [read_ranked(reader)]


def _prompt(reader: RowReader) -> list[Example]:
    """The conversation before the answers, whatever these are; one that ends with the user's turn is all prompt."""
    roles = [role for role in ANSWER_ROLES if role in reader.mapping.roles and reader.has(role)]
    histories = []
    for role in roles:
        turns = reader.messages(role, "assistant")
        histories.append(turns[:-1] if turns[-1].role == "assistant" else turns)
    known = [*roles, *(role for role in (*ANSWER_ROLES, "responses", "prompt") if role in reader.mapping.roles)]
    return [build_example(reader, read_prompt(reader, shared_history(reader, histories), known[0]), [])]


READERS: dict[Layout, Callable[[RowReader], list[Example]]] = {
    Layout.SINGLE: _single,
    Layout.PAIRED: _pair,
    Layout.UNPAIRED: _labelled,
    Layout.RANKED: _ranked,
    Layout.PROMPT: _prompt,
}
ANSWER_ROLES = ("chosen", "rejected", "response", *COMPARED)


def _pair_scores(reader: RowReader) -> tuple[float, ...]:
    """The numbers beside a pair. For pair objectives they are an extra, and a row may go without."""
    roles = [role for role in (MARGIN, "chosen_score", "rejected_score") if role in reader.mapping.roles]
    ranked = reader.mapping.layout is Layout.RANKED
    if not roles or not (ranked or all(map(reader.has, roles))):
        return ()
    names = [reader.name(role) for role in roles]
    remedy = f"Correct it, or ignore it with columns: {{{', '.join(f'{name}: null' for name in names)}}}"
    values = [reader.value(role, "a finite number") for role in roles]
    numbers = [reader.number(value, f"'{name}'", remedy) for value, name in zip(values, names, strict=True)]
    if len(numbers) == 1:
        if numbers[0] < 0:
            expected = "a number of at least 0"
            raise reader.unlike(values[0], f"'{names[0]}'", expected, remedy, Problem.WRONG_NUMBER)
        return numbers[0], 0.0
    if ranked and numbers[0] < numbers[1]:
        sentence = f"'{names[0]}' ({numbers[0]:g}) is below '{names[1]}' ({numbers[1]:g})"
        raise reader.wrong(Problem.CONTRADICTION, f"{sentence}: the scores contradict the pair", remedy)
    return tuple(numbers)


# --- from the form of a file to another layout


def _split(read: Sequence[Sequence[Example]]) -> list[Example]:
    """Of each row the chosen answer once, then every rejected one."""
    examples = []
    for pairs in read:
        examples.append(pairs[0].pick(0, scores=(1.0,)))
        examples += [pair.pick(1, scores=(0.0,)) for pair in pairs]
    return examples


def _say_what_became(
    read: Sequence[Sequence[Example]],
    examples: Sequence[Example],
    mapping: ColumnMapping,
    ranked_pairs: RankedPairs,
    where: str,
) -> None:
    count = sum(map(len, read))
    match mapping.form, mapping.layout:
        case Layout.PAIRED, Layout.UNPAIRED:
            said = "%s: %d pairs become %d rows: chosen desirable, rejected undesirable"
            log.info(said, where, count, len(examples))
        case Layout.RANKED, Layout.PAIRED:
            responses = sum(len(example.responses) for several in read for example in several)
            log.info(
                "%s: %d ranked rows with %d responses become %d pairs (ranked_pairs: %s)",
                where, count, responses, len(examples), ranked_pairs,
            )  # fmt: skip
        case Layout.RANKED, Layout.SINGLE:
            log.info("%s: %d ranked rows, of which the best response is taken", where, count)
        case Layout.PAIRED, Layout.PAIRED:
            _warn_of_contradictions(examples, where)


def _warn_of_contradictions(pairs: Sequence[Example], where: str) -> None:
    against = sum(bool(pair.scores) and pair.scores[0] < pair.scores[1] for pair in pairs)
    if against:
        log.warning(
            "%s: in %d of %d pairs the rejected answer has the higher score. The columns decide which is chosen; "
            "check that they are not swapped.",
            where, against, len(pairs),
        )  # fmt: skip


def _where(rows: Sequence[Row]) -> str:
    """The file that the rows are from, or the first of them and how many there are."""
    files = list(dict.fromkeys(f"{row.origin.dataset}[{row.origin.split}]" for row in rows))
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
