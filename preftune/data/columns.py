"""Which column is what: from the columns of a file to the roles they play, and with these to the form of its rows.

A form is how the rows stand in the file; a layout is what an objective trains on. A file is read as the first form that
the layout takes and for which the file has the columns (`FORMS_OF`). A pair is chosen and rejected, or two answers and
the column that says which of them won.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from preftune.data.labels import to_label
from preftune.data.names import (
    ANSWERS,
    CHOSEN,
    CHOSEN_SCORES,
    COMPARED,
    CONVERSATIONS,
    EXTRAS,
    KNOWN_COLUMNS,
    LABELS,
    LESSER_QUESTIONS,
    LISTED_ANSWERS,
    MARGIN,
    ONE_SCORE,
    PROMPTS,
    QUESTIONS,
    RANKS,
    REJECTED,
    REJECTED_SCORES,
    RESPONSES,
    ROW_EXTRAS,
    SCORE_ROLES,
    SCORES,
    TAG,
)
from preftune.data.sources import Row, describe, name_list, one_line
from preftune.data.transcripts import is_transcript, is_written_list
from preftune.data.winners import WINNER, WINNER_INDEX, find_pair, find_winners, is_ambiguous
from preftune.errors import DataError, RecipeError
from preftune.types import Layout, Origin

FORMS_OF = {
    Layout.SINGLE: (Layout.SINGLE, Layout.RANKED, Layout.PAIRED),
    Layout.PAIRED: (Layout.PAIRED, Layout.RANKED),
    Layout.UNPAIRED: (Layout.PAIRED, Layout.UNPAIRED),
    Layout.RANKED: (Layout.RANKED, Layout.PAIRED),
    Layout.PROMPT: (Layout.PAIRED, Layout.RANKED, Layout.SINGLE, Layout.PROMPT),  # answers may hold the earlier turns
}
NEEDED: dict[Layout, dict[str, tuple[str, ...]]] = {
    Layout.SINGLE: {"response": ANSWERS},
    Layout.PAIRED: {"chosen": CHOSEN, "rejected": REJECTED},
    Layout.UNPAIRED: {"response": ANSWERS, "label": LABELS},
    Layout.RANKED: {"responses": RESPONSES},
    Layout.PROMPT: {"prompt": PROMPTS},
}
FORM_WITH = {
    "rejected": Layout.PAIRED,
    COMPARED[0]: Layout.PAIRED,
    "label": Layout.UNPAIRED,
    "responses": Layout.RANKED,
    "response": Layout.SINGLE,
}

TRANSCRIPT, WRITTEN_LIST = "transcript", "list of messages as text"
LOOKED_AT = 8  # values of a column that decide what kind of text it holds

Columns = Mapping[str, str | None]


@dataclass(frozen=True)
class ColumnMapping:
    """What was understood: role (prompt, chosen, ...) to the name of the column in the file, and the columns unused."""

    layout: Layout
    roles: dict[str, str]
    kinds: dict[str, str]
    unused: tuple[str, ...]

    @property
    def form(self) -> Layout:
        """How the rows stand in the file, which may be another than the layout they were asked for."""
        return next((form for role, form in FORM_WITH.items() if role in self.roles), Layout.PROMPT)

    @property
    def winners(self) -> list[str]:
        """The roles of the columns that say which of two answers is better; none of other forms."""
        return [role for role in self.roles if role.startswith(WINNER)]

    @property
    def source(self) -> str:
        """How the rows stand in the file, in words; empty where it is the layout's own form."""
        if self.winners:
            return "two answers and a winner"
        form = "" if self.form is self.layout else f"{self.form} rows"
        if TRANSCRIPT in self.kinds.values():
            return f"{form} of transcripts" if form else "transcripts"
        return form

    def __str__(self) -> str:
        used = ", ".join(f"{role} = '{name}' ({self.kinds[role]})" for role, name in self.roles.items())
        layout = f"{self.layout} from {self.source}" if self.source else str(self.layout)
        return f"{layout}: {used}" + (f"; unused: {name_list(self.unused)}" if self.unused else "")

    def to_dict(self) -> dict[str, Any]:
        """layout, form (how the rows stand in the file), columns (role to name), kinds (role to kind), unused."""
        return {
            "layout": str(self.layout),
            "form": self.source or str(self.form),
            "columns": dict(self.roles),
            "kinds": dict(self.kinds),
            "unused": list(self.unused),
        }


def recognise(rows: Sequence[Row], layout: Layout | str, columns: Columns | None = None) -> ColumnMapping:
    """Find the form from the column names; print the result to see it.

    Args:
        layout: what the rows are wanted as, see `preftune.data.formats.to_examples`.
        columns: the file's name to a known one; None = ignore the column.

    Raises:
        DataError: the columns give no form that `layout` takes.
        RecipeError: `layout` or a target in `columns` is not known.
    """
    layout = _checked_layout(layout)
    if not rows:
        raise DataError("there are no rows to read. Check the dataset's path and split.")
    found = list(dict.fromkeys(name for row in rows for name in row.values))
    names = _canonical_names(found, columns or {}, rows[0].origin)
    roles = _roles(rows, names, layout, found)
    _check_winner(rows, roles, columns or {})
    _check_scores(rows, roles, columns or {})
    kinds = {role: _kind(rows, role, name) for role, name in roles.items()}
    return ColumnMapping(layout, roles, kinds, tuple(name for name in found if name not in roles.values()))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: 'prompt'`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; nearest: '{one_line(near[0])}'" if near else ""


def _checked_layout(layout: Layout | str) -> Layout:
    if layout not in tuple(Layout):
        raise RecipeError(f"'layout' is {str(layout)!r}; expected one of {', '.join(Layout)}.")
    return Layout(layout)


def _canonical_names(found: Sequence[str], columns: Columns, origin: Origin) -> dict[str, str]:
    """Our name to theirs. What `columns` says comes before a column that happens to bear the name."""
    if not isinstance(columns, Mapping):
        raise RecipeError(f"'columns' is {describe(columns)}; expected a map such as {{question: prompt}}.")
    for theirs, ours in columns.items():
        if theirs not in found:
            near = nearest(theirs, found)
            raise DataError(
                f"{origin}: 'columns' names '{one_line(theirs)}', and there is no such column "
                f"(found: {name_list(found)}{near}). Correct the name in 'columns'."
            )
        if ours is not None and ours not in KNOWN_COLUMNS:
            near = nearest(str(ours), KNOWN_COLUMNS)
            raise RecipeError(
                f"'columns' maps '{one_line(theirs)}' to {ours!r}, which is not known{near}. "
                f"Known: {', '.join(KNOWN_COLUMNS)}."
            )
    names = {ours: theirs for theirs, ours in columns.items() if ours is not None}
    for name in found:
        if name not in columns:
            names.setdefault(name, name)
    return names


# --- roles


def _roles(rows: Sequence[Row], names: Mapping[str, str], layout: Layout, found: Sequence[str]) -> dict[str, str]:
    """The roles of the first form that `layout` takes and the columns give."""
    forms = {form: roles_of(rows, names) for form, roles_of in ROLES_OF.items()}
    complete = [form for form, roles in forms.items() if NEEDED[form].keys() <= roles.keys()]
    if COMPARED[0] in forms[Layout.PAIRED] and {WINNER, WINNER_INDEX} & forms[Layout.PAIRED].keys():
        complete.append(Layout.PAIRED)
    if layout is Layout.PAIRED and "rejected" in forms[layout]:  # a pair whose other half is misspelt
        complete = [form for form in complete if form is layout]
    form = next((form for form in FORMS_OF[layout] if form in complete), None)
    if form is None:
        raise _other_form(forms, complete, layout, rows[0].origin) or _missing(rows, forms[layout], layout, found)
    if layout is Layout.UNPAIRED:
        return {role: name for role, name in forms[form].items() if role not in SCORE_ROLES}
    return forms[form]


def _single_roles(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    ranked = _ranked_column(rows, names)
    prompt = _pick(names, PROMPTS)
    response = _pick({ours: theirs for ours, theirs in names.items() if theirs != ranked}, ANSWERS)
    conversation = _pick(names, CONVERSATIONS)
    if response is None and conversation is not None:
        prompt, response = None, conversation
    return _filled(names, {"prompt": prompt, "response": response})


def _prompt_roles(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    return _filled(names, {"prompt": _pick(names, PROMPTS)})


def _paired_roles(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    prompt, chosen, rejected = (_pick(names, options) for options in (PROMPTS, CHOSEN, REJECTED))
    if rejected is None and find_pair(names):
        return _compared_roles(names)
    conversation = _pick(names, CONVERSATIONS)
    if chosen is None and rejected is not None and conversation is not None:
        # messages + rejected_response: the conversation's last turn is the chosen answer
        prompt, chosen = _pick(names, (*QUESTIONS, *LESSER_QUESTIONS)), conversation
    roles = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    scores = {"chosen_score": _pick(names, CHOSEN_SCORES), "rejected_score": _pick(names, REJECTED_SCORES)}
    if MARGIN in names:
        roles[MARGIN] = names[MARGIN]
    elif None not in scores.values():
        roles |= scores
    return _filled(names, roles)


def _compared_roles(names: Mapping[str, str]) -> dict[str, str]:
    pair = find_pair(names)
    assert pair is not None
    others = {ours: theirs for ours, theirs in names.items() if ours not in pair}
    answers = {role: names[name] for role, name in zip(COMPARED, pair, strict=True)}
    return _filled(names, {"prompt": _pick(others, PROMPTS), **answers, **find_winners(others)})


def _labelled_roles(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    label = _pick(names, LABELS)
    if label is None and TAG in names and to_label(_first_value(rows, names[TAG])) is not None:
        label = names[TAG]
    roles = _single_roles(rows, {ours: theirs for ours, theirs in names.items() if theirs != label})
    return roles | {"label": label} if label is not None else roles


def _ranked_roles(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    listed = [name for name in SCORES if name not in ONE_SCORE or isinstance(_value_of(rows, names, name), list)]
    scores = _pick(names, listed)
    ranks = None if scores is not None else _pick(names, RANKS)
    roles = {"prompt": _pick(names, PROMPTS), "responses": _ranked_column(rows, names), "scores": scores}
    return _filled(names, {**roles, "ranks": ranks})


ROLES_OF: dict[Layout, Callable[[Sequence[Row], Mapping[str, str]], dict[str, str]]] = {
    Layout.SINGLE: _single_roles,
    Layout.PAIRED: _paired_roles,
    Layout.UNPAIRED: _labelled_roles,
    Layout.RANKED: _ranked_roles,
    Layout.PROMPT: _prompt_roles,
}


def _pick(names: Mapping[str, str], options: Sequence[str]) -> str | None:
    return next((names[option] for option in options if option in names), None)


def _ranked_column(rows: Sequence[Row], names: Mapping[str, str]) -> str | None:
    """The column of a row's responses: one of their names, or an answer column that holds lists of texts."""
    named = _pick(names, RESPONSES)
    if named is not None:
        return named
    listed = (names[option] for option in LISTED_ANSWERS if option in names)
    return next((name for name in listed if _holds_texts(_first_value(rows, name))), None)


def _value_of(rows: Sequence[Row], names: Mapping[str, str], name: str) -> Any:
    return _first_value(rows, names[name]) if name in names else None


def _holds_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _filled(names: Mapping[str, str], roles: Mapping[str, str | None]) -> dict[str, str]:
    """The roles that have a column, with the extra columns that go with the prompt."""
    filled = {role: name for role, name in roles.items() if name is not None}
    extras = {extra: _pick(names, options) for extra, options in (EXTRAS | ROW_EXTRAS).items()}
    if filled.get("prompt") != names.get("instruction"):
        extras["input"] = None  # it completes an instruction and nothing else
    taken = filled.values()
    return filled | {extra: name for extra, name in extras.items() if name is not None and name not in taken}


def _first_value(rows: Sequence[Row], name: str) -> Any:
    return next((row.values[name] for row in rows if row.values.get(name) is not None), None)


def _kind(rows: Sequence[Row], role: str, name: str) -> str:
    """What a column holds, by its first values; other rows may differ."""
    filled = (row.values[name] for row in rows if row.values.get(name) not in (None, "", []))
    values = list(islice(filled, LOOKED_AT))
    if values and all(map(is_transcript, values)):
        return TRANSCRIPT
    if values and all(map(is_written_list, values)):
        return WRITTEN_LIST
    value = _first_value(rows, name)
    if isinstance(value, list):
        return "list" if role in ("responses", "scores", "ranks", "tools") or _holds_texts(value) else "messages"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    return "message" if isinstance(value, dict) else "text"


# --- refusals


def _check_winner(rows: Sequence[Row], roles: Mapping[str, str], columns: Columns) -> None:
    """Numbers that could be names or places are read when `columns` says which they are."""
    name = roles.get(WINNER)
    if name is None or "winner 2" in roles or columns.get(name) == WINNER:
        return
    answers = (roles["answer_1"], roles["answer_2"])
    if is_ambiguous((row.values.get(name) for row in rows), answers):
        first, second = (f"'{one_line(answer)}'" for answer in answers)
        column = one_line(name)
        raise DataError(
            f"{rows[0].origin}: the numbers in '{column}' do not say by themselves which of {first} and {second} is "
            f"better. Say it with columns: {{{column}: winner_index}} where 0 is the first, 1 the second and 2 a tie, "
            f"or columns: {{{column}: winner}} where 1 is the first, 2 the second and 0 a tie."
        )


def _check_scores(rows: Sequence[Row], roles: Mapping[str, str], columns: Columns) -> None:
    """Responses are taken as best first only where no column looks like their scores."""
    responses = _first_value(rows, roles["responses"]) if "responses" in roles else None
    if not isinstance(responses, list) or {"scores", "ranks"} & roles.keys():
        return
    for name in dict.fromkeys(name for row in rows[:LOOKED_AT] for name in row.values):
        value = _first_value(rows, name)
        if columns.get(name, name) is None or not isinstance(value, list) or len(value) != len(responses):
            continue
        if all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            said = one_line(name)
            raise DataError(
                f"{rows[0].origin}: '{said}' holds a number for each of '{one_line(roles['responses'])}', and nothing "
                f"says what they are. Say it with columns: {{{said}: scores}} where more is better, {{{said}: ranks}} "
                f"where less is, or {{{said}: null}} where the order of the responses counts, best first."
            )


def _other_form(
    forms: Mapping[Layout, Mapping[str, str]], complete: Sequence[Layout], layout: Layout, origin: Origin
) -> DataError | None:
    """The refusal of rows that are whole, and made for another layout."""
    wanted = {
        Layout.PAIRED: "chosen and rejected",
        Layout.RANKED: "several responses",
        Layout.UNPAIRED: "one answer and a label",
    }
    if Layout.UNPAIRED in complete:
        return DataError(
            f"{origin}: the rows are unpaired: one answer and a label ('{forms[Layout.UNPAIRED]['label']}'), expected "
            f"{wanted[layout]}. Set objective: kto, which trains on such rows, or give rows with {wanted[layout]}."
        )
    if Layout.RANKED in complete:
        return DataError(
            f"{origin}: the rows are ranked: several responses ('{forms[Layout.RANKED]['responses']}'), expected "
            f"{wanted[layout]}. Set objective: rrhf, reward or one for pairs, or give rows with {wanted[layout]}."
        )
    return None


def _missing(rows: Sequence[Row], roles: Mapping[str, str], layout: Layout, found: Sequence[str]) -> DataError:
    """The refusal that names the first column that the layout needs and that is not there."""
    if COMPARED[0] in roles:
        first, second = (f"'{one_line(roles[answer])}'" for answer in COMPARED)
        return DataError(
            f"{rows[0].origin}: there is no column that says which of {first} and {second} is better (found: "
            f"{name_list(found)}). Name it with columns: {{your_column: winner}}."
        )
    options = next(options for role, options in NEEDED[layout].items() if role not in roles)
    # 'response 1' is near to 'response' and may well be the worse answer: a numbered column is never proposed
    unused = [name for name in found if name not in roles.values() and not name[-1:].isdigit()]
    if layout is Layout.RANKED:
        unused = [name for name in unused if isinstance(_first_value(rows, name), list)]
    near = next((n for n in unused if difflib.get_close_matches(n, options, n=1)), None)
    remedy = f"{{{near or 'your_column'}: {options[0]}}}"
    return DataError(
        f"{rows[0].origin}: there is no '{options[0]}' column (found: {name_list(found)}"
        f"{f'; nearest: {near!r}' if near else ''}). Name it with columns: {remedy}."
    )
