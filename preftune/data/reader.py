"""One row seen through the columns' roles: its prompt, its answers, and what is said of them.

Every complaint names the row, the file's own column, what was expected, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.bad_rows import BadRowError, Problem
from preftune.data.columns import TRANSCRIPT, WRITTEN_LIST, ColumnMapping, nearest
from preftune.data.labels import to_number
from preftune.data.sources import Row, describe, excerpt, name_list
from preftune.data.tools import ToolsError, calls_text, tools_text
from preftune.data.transcripts import read_transcript, read_written_list
from preftune.types import Example, Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
}
EXCHANGE = {"human", "assistant"}  # the keys of a question with its answer in one object
CONTENTS = ("content", "value", "text")
TEXT = "text or a list of messages"
TEXT_TABLES = (".csv", ".tsv")  # these have no null


@dataclass(frozen=True)
class RowReader:
    """A row and the roles of its columns."""

    row: Row
    mapping: ColumnMapping

    def wrong(self, problem: Problem, sentence: str, remedy: str) -> BadRowError:
        return BadRowError(self.row.origin, problem, f"{sentence}. {remedy}.")

    def unlike(
        self, value: object, where: str, expected: str, remedy: str, problem: Problem = Problem.WRONG_TYPE
    ) -> BadRowError:
        found = "NaN" if isinstance(value, float) and math.isnan(value) else describe(value)
        problem = Problem.NULL if value is None else problem
        return self.wrong(problem, f"{where} is {found}, expected {expected}", remedy)

    def name(self, role: str) -> str:
        return self.mapping.roles[role]

    def has(self, role: str) -> bool:
        """Whether an optional role is there and filled: null, empty text and an empty list are not."""
        return role in self.mapping.roles and self.row.values.get(self.name(role)) not in (None, "", [])

    def value(self, role: str, expected: str = TEXT) -> Any:
        name = self.name(role)
        if name not in self.row.values:
            near = nearest(name, self.row.values)
            found = name_list(self.row.values)
            sentence = f"'{name}' is missing in this row (found: {found}{near})"
            raise self.wrong(Problem.MISSING, sentence, f"Give the row a '{name}', or delete it")
        value = self.row.values[name]
        if value is None:
            raise self.unlike(value, f"'{name}'", expected, "Fill it in, or delete the row")
        return value

    def text(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            raise self.unlike(value, name, "text", "Write it as text in quotes, or delete the row")
        if not value.isascii():
            self._check_encodable(value, name)
        return value

    def _check_encodable(self, value: str, name: str) -> None:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            sentence = f"{name} holds half of a surrogate pair at character {error.start + 1}, which is not valid text"
            raise self.wrong(Problem.BROKEN_TEXT, sentence, "Remove it, or delete the row") from error

    def number(self, value: object, where: str, remedy: str) -> float:
        number = to_number(value)
        if number is None:
            raise self.unlike(value, where, "a finite number", remedy, Problem.WRONG_NUMBER)
        return number

    def messages(self, role: str, speaker: str) -> tuple[Message, ...]:
        """The column as messages; plain text is one message of `speaker`."""
        value, where = self.value(role), f"'{self.name(role)}'"
        kind = self.mapping.kinds[role]
        if kind == TRANSCRIPT and isinstance(value, str):
            return self.transcript(self.text(value, where), where, speaker)
        if kind == WRITTEN_LIST and isinstance(value, str):
            expected, remedy = "a list of messages as in the other rows", "Write it as in the other rows, or delete it"
            listed = read_written_list(self.text(value, where))
            if listed is None:
                raise self.unlike(value, where, expected, remedy)
            value = listed
        return self.turns(value, where, speaker)

    def transcript(self, text: str, where: str, speaker: str) -> tuple[Message, ...]:
        """The turns of a Human/Assistant text; a prompt may end with an `Assistant:` that is still to answer."""
        turns = read_transcript(text)
        if not turns:
            expected = "a transcript that starts with 'Human:' as in the other rows"
            raise self.unlike(text, where, expected, "Write it as in the other rows, or delete the row")
        if speaker == "user" and turns[-1] == Message("assistant", ""):
            return turns[:-1]
        return turns

    def turns(self, value: object, where: str, speaker: str) -> tuple[Message, ...]:
        if isinstance(value, str):
            return (Message(speaker, self.text(value, where)),)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not value:
            raise self.unlike(value, where, TEXT, 'Write it as text or as [{"role": "user", "content": "..."}]')
        if all(isinstance(turn, dict) and turn.keys() == EXCHANGE for turn in value):
            value = [{"role": role, "content": turn[role]} for turn in value for role in ("human", "assistant")]
        return tuple(self.message(turn, f"{where} message {number}") for number, turn in enumerate(value, 1))

    def message(self, turn: object, where: str) -> Message:
        if not isinstance(turn, dict):
            remedy = 'Write it as {"role": "user", "content": "..."}'
            raise self.unlike(turn, where, "an object with role and content", remedy)
        speaker = "role" if "role" in turn else "from"
        content = next((key for key in CONTENTS if key in turn), "content")
        calls = self._calls(turn, where)
        for key, names in ((speaker, "'role' or 'from'"), (content, "'content', 'value' or 'text'")):
            if key not in turn and not (calls and key == content):
                sentence = f"{where} has no {names} (found: {name_list(turn)})"
                raise self.wrong(Problem.MISSING, sentence, "Add it, or delete the row")
        role = turn[speaker]
        if not isinstance(role, str) or role not in ROLES:
            found = excerpt(role) if isinstance(role, str) else describe(role)
            sentence = f"{where} has the role {found}, which is not known"
            raise self.wrong(Problem.UNKNOWN_ROLE, sentence, f"Use one of {', '.join(ROLES)}")
        if calls and turn.get(content) is None:  # a turn that calls often says nothing
            return Message(ROLES[role], "", calls)
        text = self.content(turn[content], f"the content of {where}")
        if ROLES[role] != "tool":
            return Message(ROLES[role], text, calls)
        call, name = (self.text(turn.get(key) or "", f"the {key} of {where}") for key in ("tool_call_id", "name"))
        return Message("tool", text, calls, call, name)

    def _calls(self, turn: dict[str, Any], where: str) -> str:
        """The tool calls of a message as JSON text."""
        remedy = 'Write {"tool_calls": [{"function": {"name": ..., "arguments": {...}}}]}, or delete the row'
        if turn.get("function_call") is not None:
            raise self.wrong(Problem.WRONG_TOOLS, f"{where} has a 'function_call', which is not read", remedy)
        try:
            calls = calls_text(turn.get("tool_calls"))
        except ToolsError as error:
            raise self.wrong(Problem.WRONG_TOOLS, f"the tool_calls of {where}: {error}", remedy) from error
        if calls and ROLES.get(str(turn.get("role", turn.get("from")))) != "assistant":
            sentence = f"{where} has tool_calls and is not the assistant's"
            raise self.wrong(Problem.WRONG_TOOLS, sentence, "Give them to the turn that calls, or delete the row")
        return calls

    def content(self, value: object, where: str) -> str:
        """Text, or the texts of a list of parts `{"type": "text", "text" or "value": ...}` put together."""
        if not isinstance(value, list) or not value:
            return self.text(value, where)
        return "".join(self._part(part, f"{where} part {number}") for number, part in enumerate(value, 1))

    def _part(self, part: object, where: str) -> str:
        expected, remedy = 'an object {"type": "text", "text": ...}', "Only text can be read: delete the row"
        if not isinstance(part, dict):
            raise self.unlike(part, where, expected, remedy)
        key = next((key for key in ("text", "value") if key in part), None)
        if part.get("type", "text") != "text" or key is None:
            sentence = f"{where} is no text (found: {name_list(f'{k}: {v}'[:40] for k, v in part.items())})"
            raise self.wrong(Problem.WRONG_TYPE, f"{sentence}, expected {expected}", remedy)
        return self.text(part[key], where)


# --- answers


def build_example(
    reader: RowReader, prompt: tuple[Message, ...], answers: Sequence[str], scores: Sequence[float] = ()
) -> Example:
    """The example of a row, with the row's weight and tools."""
    origin, bare = reader.row.origin, _denies_system(reader)
    return Example(prompt, tuple(answers), origin, tuple(scores), _weight(reader), _tools(reader), bare)


def _denies_system(reader: RowReader) -> bool:
    """Whether the row's `system` is empty text: null says nothing, and so does a cell without anything in a table."""
    text = reader.row.values.get(reader.mapping.roles.get("system", ""))
    in_table = any(suffix in TEXT_TABLES for suffix in Path(reader.row.origin.dataset).suffixes)
    return isinstance(text, str) and not text.strip() and not in_table


def _weight(reader: RowReader) -> float:
    if "weight" not in reader.mapping.roles:
        return 1.0
    expected, name = "a number of at least 0", reader.name("weight")
    remedy = f"Correct it, or ignore the column with columns: {{{name}: null}}"
    value = reader.value("weight", expected)
    number = reader.number(value, f"'{name}'", remedy)
    if number < 0:
        raise reader.unlike(value, f"'{name}'", expected, remedy, Problem.WRONG_NUMBER)
    return number


def _tools(reader: RowReader) -> str:
    if not reader.has("tools"):
        return ""
    name = reader.name("tools")
    try:
        return tools_text(reader.row.values[name])
    except ToolsError as error:
        remedy = f"Write a list of JSON schemas or its JSON text, or ignore it with columns: {{{name}: null}}"
        raise reader.wrong(Problem.WRONG_TOOLS, f"'{name}': {error}", remedy) from error


def read_answer(reader: RowReader, role: str) -> tuple[tuple[Message, ...], str]:
    """What comes before the answer (often nothing), and the answer."""
    return _last_turn(reader, reader.messages(role, "assistant"), f"'{reader.name(role)}'")


def to_answer(reader: RowReader, value: object, where: str) -> tuple[tuple[Message, ...], str]:
    """The same of a value that is not a whole column: text, a message, or a list of messages."""
    return _last_turn(reader, reader.turns(value, where, "assistant"), where)


def _last_turn(reader: RowReader, turns: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], str]:
    if turns[-1].role != "assistant":
        sentence = f"the last message of {where} is from the {turns[-1].role}, expected the assistant's answer"
        raise reader.wrong(Problem.WRONG_TURN, sentence, "Cut the conversation after an answer, or delete the row")
    if turns[-1].tool_calls:
        sentence = f"the answer in {where} is a tool call, and answers are read as text"
        remedy = "Write it as the text that the model is to write, or cut the conversation after a spoken answer"
        raise reader.wrong(Problem.WRONG_TOOLS, sentence, remedy)
    answer = turns[-1].content
    if not answer.strip():
        sentence = f"the answer in {where} is {'only whitespace' if answer else 'empty'}"
        raise reader.wrong(Problem.EMPTY_ANSWER, sentence, "Fill it in, or delete the row")
    return turns[:-1], answer


def shared_history(reader: RowReader, histories: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """What comes before all answers of a row; answers without history take that of the others."""
    given = [history for history in histories if history]
    for history in given:
        if history != given[0]:
            raise _different_prompts(reader, given[0], history)
    return given[0] if given else ()


# --- prompts


def read_prompt(reader: RowReader, history: tuple[Message, ...], answer_role: str) -> tuple[Message, ...]:
    """The conversation before the answer, from the prompt column, from the answers' shared history, or from both."""
    if "prompt" in reader.mapping.roles:
        prompt = _instructed(reader)
        if history and reader.has("history"):
            sentence = f"'{reader.name('history')}' and '{reader.name(answer_role)}' both hold earlier turns"
            raise reader.wrong(Problem.TWICE_TOLD, sentence, "Keep them in one place")
        if history:
            prompt = _checked_duplicate(reader, prompt, history)
        elif reader.has("history"):
            prompt = _past_turns(reader) + prompt
    elif history:
        prompt = history
    else:
        sentence = f"there is no prompt: no 'prompt' column, and '{reader.name(answer_role)}' holds the answer alone"
        raise reader.wrong(
            Problem.NO_PROMPT, sentence, "Give a 'prompt' column, or name it with columns: {your_column: prompt}"
        )
    prompt = _with_system(reader, prompt)
    if prompt[-1].role not in ("user", "tool"):
        sentence = f"the prompt ends with a message from the {prompt[-1].role}, expected the user's turn"
        raise reader.wrong(Problem.WRONG_TURN, sentence, "End it before the answer, or delete the row")
    if not prompt[-1].content.strip():
        raise reader.wrong(Problem.EMPTY_PROMPT, "the prompt is empty", "Fill it in, or delete the row")
    return prompt


def _instructed(reader: RowReader) -> tuple[Message, ...]:
    """The prompt column; an alpaca row's `input` stands on the line after its `instruction`."""
    prompt = reader.messages("prompt", "user")
    if not reader.has("input"):
        return prompt
    addition = reader.text(reader.value("input"), f"'{reader.name('input')}'")
    if not addition.strip():
        return prompt
    return (*prompt[:-1], Message(prompt[-1].role, f"{prompt[-1].content}\n{addition}"))


def _checked_duplicate(
    reader: RowReader, prompt: tuple[Message, ...], history: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The answers' history, once the prompt column is seen to repeat its beginning or one of its user turns, or both
    where the history goes on with the assistant's turn.
    """
    if prompt == history[: len(prompt)]:
        return history
    system, asked = _without_system(prompt)
    own_system, spoken = _without_system(history)
    if asked == spoken[: len(asked)] and not (system and own_system):
        return system + history
    questions = {turn.content.strip() for turn in spoken if turn.role == "user"}
    if len(prompt) == 1 and prompt[0].content.strip() in questions:
        return history
    if history[0].role == "assistant" and prompt[-1].role == "user":
        return prompt + history  # answers of several turns go on where the prompt ends
    raise _different_prompts(reader, prompt, history)


def _without_system(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    said = tuple(turn for turn in turns if turn.role != "system")
    return tuple(turn for turn in turns if turn.role == "system"), said


def _different_prompts(reader: RowReader, one: Sequence[Message], other: Sequence[Message]) -> BadRowError:
    pairs = zip(one, other, strict=False)
    a, b = next(((a, b) for a, b in pairs if a != b), (one[-1], other[-1]))
    known = ("prompt", "chosen", "rejected", "answer_1", "answer_2", "response", "responses")
    roles = [role for role in known if role in reader.mapping.roles]
    columns = " and ".join(f"'{reader.name(role)}'" for role in roles)
    return reader.wrong(
        Problem.DIFFERENT_PROMPTS,
        f"{columns} start with different prompts ({_spoken(a)} / {_spoken(b)})",
        "Give a 'prompt' column and answers without history, or delete the row",
    )


def _spoken(message: Message) -> str:
    return f"{message.role}: {excerpt(message.content)}"


def _past_turns(reader: RowReader) -> tuple[Message, ...]:
    """The `history` column: [[question, answer], ...] or messages."""
    value, name = reader.value("history"), reader.name("history")
    if not isinstance(value, list):
        remedy = 'Write it as [["question", "answer"]]'
        raise reader.unlike(value, f"'{name}'", "a list of [question, answer]", remedy)
    if isinstance(value[0], dict):
        return reader.messages("history", "user")
    turns: list[Message] = []
    for number, pair in enumerate(value, 1):
        where = f"'{name}' turn {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            sentence = f"{where} is not a pair [question, answer]"
            raise reader.wrong(Problem.WRONG_TYPE, sentence, 'Write it as [["question", "answer"]]')
        turns += [Message("user", reader.text(pair[0], where)), Message("assistant", reader.text(pair[1], where))]
    return tuple(turns)


def _with_system(reader: RowReader, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with the `system` column in front, when it says anything."""
    if not reader.has("system"):
        return prompt
    text = reader.text(reader.value("system"), f"'{reader.name('system')}'")
    if not text.strip():
        return prompt
    if prompt[0].role != "system":
        return (Message("system", text), *prompt)
    if prompt[0].content.strip() != text.strip():
        sentence = f"two system messages ({excerpt(prompt[0].content)} in the prompt, {excerpt(text)} in the column)"
        raise reader.wrong(Problem.TWICE_TOLD, sentence, "Keep one of them")
    return prompt
