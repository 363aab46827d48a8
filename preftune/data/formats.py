"""Rows to examples: which column is the prompt, which the chosen and which the rejected answer.

In: rows of a file. Out: `Example`s, a conversation that ends before the answer and one answer (single) or two (paired,
chosen first). The columns decide the form once for all rows; whether a value is text or a list of messages is looked at
row by row. Understood:

    prompt + chosen + rejected              text, a message {role, content} or {from, value}, or a list of messages
    chosen + rejected                       whole conversations that share their history
    query + response + rejected_response    with history ([[question, answer], ...]) and system
    prompt + response, prompt + completion, query + response, instruction + input + output, messages    (single)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.sources import Row, describe, excerpt, name_list, one_line
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Layout, Message, Origin

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
CONVERSATIONS = ("messages", "conversations")
PROMPTS = ("prompt", "query", "question", "instruction", *CONVERSATIONS)
CHOSEN = ("chosen", "response")
REJECTED = ("rejected", "rejected_response")
ANSWERS = ("response", "completion", "output", "answer", "chosen")
EXTRAS = ("input", "history", "system")
KNOWN_COLUMNS = tuple(dict.fromkeys((*PROMPTS, *CHOSEN, *REJECTED, *ANSWERS, *EXTRAS)))

Columns = Mapping[str, str | None]


@dataclass(frozen=True)
class ColumnMapping:
    """What was understood: role (prompt, chosen, ...) to the name of the column in the file, and the columns unused."""

    layout: Layout
    roles: dict[str, str]
    kinds: dict[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        used = ", ".join(f"{role} = '{name}' ({self.kinds[role]})" for role, name in self.roles.items())
        return f"{self.layout}: {used}" + (f"; unused: {name_list(self.unused)}" if self.unused else "")

    def to_dict(self) -> dict[str, Any]:
        return {"layout": str(self.layout), "columns": dict(self.roles), "unused": list(self.unused)}


def to_examples(rows: Sequence[Row], layout: Layout | str, columns: Columns | None = None) -> list[Example]:
    """Turn every row into an `Example`.

    Args:
        layout: `paired`, or `single` for supervised fine-tuning; single reads pair files too and takes the chosen side.
        columns: the file's name to the name above, `{"question": "prompt", "answer_zh": "chosen"}`; None = ignore it.

    Raises:
        DataError: the columns give no known form, or a row is wrong; the message starts with the row's origin.
        RecipeError: `layout` or a target in `columns` is not known.
    """
    mapping = recognise(rows, layout, columns)
    build = _pair if mapping.layout is Layout.PAIRED else _single
    return [build(_Reader(row, mapping)) for row in rows]


def recognise(rows: Sequence[Row], layout: Layout | str, columns: Columns | None = None) -> ColumnMapping:
    """Find the form from the column names; print the result to see it. Raises as `to_examples` does."""
    layout = _checked_layout(layout)
    if not rows:
        raise DataError("there are no rows to read. Check the dataset's path and split.")
    found = list(dict.fromkeys(name for row in rows for name in row.values))
    names = _canonical_names(found, columns or {}, rows[0].origin)
    roles = _paired_roles(names) if layout is Layout.PAIRED else _single_roles(names)
    _check_complete(roles, layout, found, rows[0].origin)
    kinds = {role: _kind(rows, name) for role, name in roles.items()}
    return ColumnMapping(layout, roles, kinds, tuple(name for name in found if name not in roles.values()))


# --- columns


def _checked_layout(layout: Layout | str) -> Layout:
    if layout not in (Layout.PAIRED, Layout.SINGLE):
        raise RecipeError(f"'layout' is {str(layout)!r}; expected 'paired' or 'single'.")
    return Layout(layout)


def _canonical_names(found: Sequence[str], columns: Columns, origin: Origin) -> dict[str, str]:
    """Our name to theirs. What `columns` says comes before a column that happens to bear the name."""
    if not isinstance(columns, Mapping):
        raise RecipeError(f"'columns' is {describe(columns)}; expected a map such as {{question: prompt}}.")
    for theirs, ours in columns.items():
        if theirs not in found:
            near = _nearest(theirs, found)
            raise DataError(
                f"{origin}: 'columns' names '{one_line(theirs)}', and there is no such column "
                f"(found: {name_list(found)}{near}). Correct the name in 'columns'."
            )
        if ours is not None and ours not in KNOWN_COLUMNS:
            near = _nearest(str(ours), KNOWN_COLUMNS)
            raise RecipeError(
                f"'columns' maps '{one_line(theirs)}' to {ours!r}, which is not known{near}. "
                f"Known: {', '.join(KNOWN_COLUMNS)}."
            )
    names = {ours: theirs for theirs, ours in columns.items() if ours is not None}
    for name in found:
        if name not in columns:
            names.setdefault(name, name)
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; nearest: '{one_line(near[0])}'" if near else ""


def _pick(names: Mapping[str, str], options: Sequence[str]) -> str | None:
    return next((names[option] for option in options if option in names), None)


def _paired_roles(names: Mapping[str, str]) -> dict[str, str]:
    prompt, chosen, rejected = (_pick(names, options) for options in (PROMPTS, CHOSEN, REJECTED))
    conversation = _pick(names, CONVERSATIONS)
    if chosen is None and rejected is not None and conversation is not None:
        # messages + rejected_response: the conversation's last turn is the chosen answer
        prompt, chosen = _pick(names, PROMPTS[:-2]), conversation
    return _filled(names, {"prompt": prompt, "chosen": chosen, "rejected": rejected})


def _single_roles(names: Mapping[str, str]) -> dict[str, str]:
    prompt, response = _pick(names, PROMPTS), _pick(names, ANSWERS)
    conversation = _pick(names, CONVERSATIONS)
    if response is None and conversation is not None:
        prompt, response = None, conversation
    return _filled(names, {"prompt": prompt, "response": response})


def _filled(names: Mapping[str, str], roles: Mapping[str, str | None]) -> dict[str, str]:
    """The roles that have a column, with the extra columns that go with the prompt."""
    filled = {role: name for role, name in roles.items() if name is not None}
    extras = [extra for extra in EXTRAS if extra in names and names[extra] not in filled.values()]
    if filled.get("prompt") != names.get("instruction"):
        extras = [extra for extra in extras if extra != "input"]  # 'input' completes an instruction and nothing else
    return filled | {extra: names[extra] for extra in extras}


def _check_complete(roles: Mapping[str, str], layout: Layout, found: Sequence[str], origin: Origin) -> None:
    needed = {"chosen": CHOSEN, "rejected": REJECTED} if layout is Layout.PAIRED else {"response": ANSWERS}
    for role, options in needed.items():
        if role not in roles:
            # 'response 1' is near to 'response' and may well be the worse answer: a numbered column is never proposed
            unused = [name for name in found if name not in roles.values() and not name[-1:].isdigit()]
            near = next((n for n in unused if difflib.get_close_matches(n, options, n=1)), None)
            remedy = f"{{{near or 'your_column'}: {options[0]}}}"
            raise DataError(
                f"{origin}: there is no '{options[0]}' column (found: {name_list(found)}"
                f"{f'; nearest: {near!r}' if near else ''}). Name it with columns: {remedy}."
            )


def _kind(rows: Sequence[Row], name: str) -> str:
    """What a column holds, by its first value; other rows may differ."""
    value = next((row.values[name] for row in rows if row.values.get(name) is not None), None)
    if isinstance(value, list):
        return "messages"
    return "message" if isinstance(value, dict) else "text"


# --- one row


@dataclass(frozen=True)
class _Reader:
    """One row seen through the mapping; every complaint it makes names the row and the file's own column."""

    row: Row
    mapping: ColumnMapping

    def wrong(self, problem: str, remedy: str) -> DataError:
        return DataError(f"{self.row.origin}: {problem}. {remedy}.")

    def name(self, role: str) -> str:
        return self.mapping.roles[role]

    def has(self, role: str) -> bool:
        """Whether an optional role is there and filled: null, empty text and an empty list are not."""
        return role in self.mapping.roles and self.row.values.get(self.name(role)) not in (None, "", [])

    def value(self, role: str) -> Any:
        name = self.name(role)
        if name not in self.row.values:
            near = _nearest(name, self.row.values)
            found = name_list(self.row.values)
            problem = f"'{name}' is missing in this row (found: {found}{near})"
            raise self.wrong(problem, f"Give the row a '{name}', or delete it")
        value = self.row.values[name]
        if value is None:
            raise self.wrong(f"'{name}' is null, expected text or a list of messages", "Fill it in, or delete the row")
        return value

    def text(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            problem = f"{name} is {describe(value)}, expected text"
            raise self.wrong(problem, "Write it as text in quotes, or delete the row")
        if not value.isascii():
            self._check_encodable(value, name)
        return value

    def _check_encodable(self, value: str, name: str) -> None:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"{name} holds half of a surrogate pair at character {error.start + 1}, which is not valid text"
            raise self.wrong(problem, "Remove it, or delete the row") from error

    def messages(self, role: str, speaker: str) -> tuple[Message, ...]:
        """The column as messages; plain text is one message of `speaker`."""
        value, name = self.value(role), self.name(role)
        if isinstance(value, str):
            return (Message(speaker, self.text(value, f"'{name}'")),)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not value:
            raise self.wrong(
                f"'{name}' is {describe(value)}, expected text or a list of messages",
                'Write it as text or as [{"role": "user", "content": "..."}]',
            )
        return tuple(self.message(turn, f"'{name}' message {number}") for number, turn in enumerate(value, 1))

    def message(self, turn: object, where: str) -> Message:
        if not isinstance(turn, dict):
            remedy = 'Write it as {"role": "user", "content": "..."}'
            raise self.wrong(f"{where} is {describe(turn)}, expected an object with role and content", remedy)
        speaker = "role" if "role" in turn else "from"
        content = "content" if "content" in turn else "value"
        for key, pair in ((speaker, "'role' or 'from'"), (content, "'content' or 'value'")):
            if key not in turn:
                found = name_list(turn)
                raise self.wrong(f"{where} has no {pair} (found: {found})", "Add it, or delete the row")
        role = turn[speaker]
        if not isinstance(role, str) or role not in ROLES:
            found = excerpt(role) if isinstance(role, str) else describe(role)
            raise self.wrong(f"{where} has the role {found}, which is not known", f"Use one of {', '.join(ROLES)}")
        return Message(ROLES[role], self.text(turn[content], f"the content of {where}"))


def _pair(reader: _Reader) -> Example:
    chosen_history, chosen = _conversation(reader, "chosen")
    rejected_history, rejected = _conversation(reader, "rejected")
    if chosen_history and rejected_history and chosen_history != rejected_history:
        raise _different_prompts(reader, chosen_history, rejected_history)
    if chosen == rejected:
        problem = f"'{reader.name('chosen')}' and '{reader.name('rejected')}' are the same ({excerpt(chosen)})"
        raise reader.wrong(problem, "A pair needs two different answers: delete the row")
    prompt = _prompt(reader, chosen_history or rejected_history, "chosen")
    return Example(prompt, (chosen, rejected), reader.row.origin)


def _single(reader: _Reader) -> Example:
    history, response = _conversation(reader, "response")
    return Example(_prompt(reader, history, "response"), (response,), reader.row.origin)


def _conversation(reader: _Reader, role: str) -> tuple[tuple[Message, ...], str]:
    """What comes before the answer (often nothing), and the answer."""
    turns, name = reader.messages(role, "assistant"), reader.name(role)
    if turns[-1].role != "assistant":
        problem = f"the last message of '{name}' is from the {turns[-1].role}, expected the assistant's answer"
        raise reader.wrong(problem, "Cut the conversation after an answer, or delete the row")
    answer = turns[-1].content
    if not answer.strip():
        problem = f"the answer in '{name}' is {'only whitespace' if answer else 'empty'}"
        raise reader.wrong(problem, "Fill it in, or delete the row")
    return turns[:-1], answer


def _prompt(reader: _Reader, history: tuple[Message, ...], answer_role: str) -> tuple[Message, ...]:
    """The conversation before the answer, from the prompt column, from the answers' shared history, or from both."""
    if "prompt" in reader.mapping.roles:
        prompt = _instructed(reader)
        if history and reader.has("history"):
            problem = f"'{reader.name('history')}' and '{reader.name(answer_role)}' both hold earlier turns"
            raise reader.wrong(problem, "Keep them in one place")
        if history:
            prompt = _checked_duplicate(reader, prompt, history)
        elif reader.has("history"):
            prompt = _past_turns(reader) + prompt
    elif history:
        prompt = history
    else:
        problem = f"there is no prompt: no 'prompt' column, and '{reader.name(answer_role)}' holds the answer alone"
        raise reader.wrong(problem, "Give a 'prompt' column, or name it with columns: {your_column: prompt}")
    prompt = _with_system(reader, prompt)
    if prompt[-1].role != "user":
        problem = f"the prompt ends with a message from the {prompt[-1].role}, expected the user's turn"
        raise reader.wrong(problem, "End it before the answer, or delete the row")
    if not prompt[-1].content.strip():
        raise reader.wrong("the prompt is empty", "Fill it in, or delete the row")
    return prompt


def _instructed(reader: _Reader) -> tuple[Message, ...]:
    """The prompt column; an alpaca row's `input` stands on the line after its `instruction`."""
    prompt = reader.messages("prompt", "user")
    if not reader.has("input"):
        return prompt
    addition = reader.text(reader.value("input"), f"'{reader.name('input')}'")
    if not addition.strip():
        return prompt
    return (*prompt[:-1], Message(prompt[-1].role, f"{prompt[-1].content}\n{addition}"))


def _checked_duplicate(
    reader: _Reader, prompt: tuple[Message, ...], history: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The answers' history, once the prompt column is seen to repeat its beginning or one of its user turns."""
    if prompt == history[: len(prompt)]:
        return history
    system, asked = _without_system(prompt)
    own_system, spoken = _without_system(history)
    if asked == spoken[: len(asked)] and not (system and own_system):
        return system + history
    questions = {turn.content.strip() for turn in spoken if turn.role == "user"}
    if len(prompt) == 1 and prompt[0].content.strip() in questions:
        return history
    raise _different_prompts(reader, prompt, history)


def _without_system(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    said = tuple(turn for turn in turns if turn.role != "system")
    return tuple(turn for turn in turns if turn.role == "system"), said


def _different_prompts(reader: _Reader, one: Sequence[Message], other: Sequence[Message]) -> DataError:
    pairs = zip(one, other, strict=False)
    a, b = next(((a, b) for a, b in pairs if a != b), (one[-1], other[-1]))
    roles = [role for role in ("prompt", "chosen", "rejected", "response") if role in reader.mapping.roles]
    columns = " and ".join(f"'{reader.name(role)}'" for role in roles)
    return reader.wrong(
        f"{columns} start with different prompts ({_spoken(a)} / {_spoken(b)})",
        "Give a 'prompt' column and answers without history, or delete the row",
    )


def _spoken(message: Message) -> str:
    return f"{message.role}: {excerpt(message.content)}"


def _past_turns(reader: _Reader) -> tuple[Message, ...]:
    """The `history` column: [[question, answer], ...] or messages."""
    value, name = reader.value("history"), reader.name("history")
    if not isinstance(value, list):
        problem = f"'{name}' is {describe(value)}, expected a list of [question, answer]"
        raise reader.wrong(problem, 'Write it as [["question", "answer"]]')
    if isinstance(value[0], dict):
        return reader.messages("history", "user")
    turns: list[Message] = []
    for number, pair in enumerate(value, 1):
        where = f"'{name}' turn {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise reader.wrong(f"{where} is not a pair [question, answer]", 'Write it as [["question", "answer"]]')
        turns += [Message("user", reader.text(pair[0], where)), Message("assistant", reader.text(pair[1], where))]
    return tuple(turns)


def _with_system(reader: _Reader, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with the `system` column in front, when it says anything."""
    if not reader.has("system"):
        return prompt
    text = reader.text(reader.value("system"), f"'{reader.name('system')}'")
    if not text.strip():
        return prompt
    if prompt[0].role != "system":
        return (Message("system", text), *prompt)
    if prompt[0].content.strip() != text.strip():
        problem = f"two system messages ({excerpt(prompt[0].content)} in the prompt, {excerpt(text)} in the column)"
        raise reader.wrong(problem, "Keep one of them")
    return prompt
