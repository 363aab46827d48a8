"""An Ollama Modelfile beside a GGUF file: the chat template in Go's language, stop texts, the system text of training.

A prompt is taken as segments: what stands before a first question, around a system text, between question and answer,
between answer and question, and at the end. They are read off the model's own template, rendered, and held against it
on other conversations; a template that is not made of such segments gets no TEMPLATE line. Ollama puts BOS in front by
the GGUF's own word, so none stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preftune.data.chat import PROBE_ANSWER, PROBE_QUESTION, PROBE_SYSTEM, ChatFormat
from preftune.errors import DataError
from preftune.types import Message

SECOND = "preftune asks again"
CHECKED = (
    (Message("user", "用一句话说：为什么天是蓝的？"),),
    (Message("system", "Be brief.\nBe kind."), Message("user", "Why?\n\n- a\n- b")),
    (Message("user", "One"), Message("assistant", "1\n\n2"), Message("user", "Two"), Message("assistant", "**3**"),
     Message("user", "Three")),
    (Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", "C")),
)  # fmt: skip
UNTRIMMED = (Message("user", " one \n"), Message("assistant", "\n two "), Message("user", "\tthree "))


@dataclass(frozen=True)
class Segments:
    """The texts of a template between those of a conversation: questions and answers by turns, a system text first."""

    opening: str
    before_system: str
    after_system: str
    to_answer: str
    to_question: str
    end: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """What Ollama makes of `template` for these messages."""
        text = ""
        for place, message in enumerate(messages):
            if message.role == "system":
                text += self.before_system + message.content + self.after_system
            elif message.role == "user":
                text += (self.opening if place == 0 else "") + message.content
            else:
                text += self.to_answer + message.content + self.to_question
        return text + self.end

    def template(self) -> str:
        """The same in the language of Go's text/template."""
        return (
            '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}'
            f"{self.before_system}{{{{ .Content }}}}{self.after_system}"
            '{{ else if eq .Role "user" }}{{ if eq $i 0 }}'
            f"{self.opening}{{{{ end }}}}{{{{ .Content }}}}"
            '{{ else if eq .Role "assistant" }}'
            f"{self.to_answer}{{{{ .Content }}}}{self.to_question}{{{{ end }}}}{{{{ end }}}}{self.end}"
        )


def read_segments(chat: ChatFormat, adds_bos: bool) -> Segments | None:
    """The segments of a chat template; None where it is not made of them, or there is none.

    Args:
        adds_bos: BOS is put in front of every prompt, so that the template's own is left out.
    """
    if chat.template is None:
        return None
    question, answer = Message("user", PROBE_QUESTION), Message("assistant", PROBE_ANSWER)
    try:
        alone = _prompt(chat, adds_bos, [question]).split(PROBE_QUESTION)
        thrice = _prompt(chat, adds_bos, [question, answer, Message("user", SECOND)])
        led = _prompt(chat, adds_bos, [Message("system", PROBE_SYSTEM), question])
    except DataError:
        return None
    asked, _, rest = thrice.partition(PROBE_ANSWER)
    system, _, after = led.partition(PROBE_SYSTEM)
    if len(alone) != 2 or not rest or not after or PROBE_QUESTION not in asked or PROBE_QUESTION not in after:
        return None
    found = Segments(
        opening=alone[0],
        before_system=system,
        after_system=after.partition(PROBE_QUESTION)[0],
        to_answer=asked.partition(PROBE_QUESTION)[2],
        to_question=rest.partition(SECOND)[0],
        end=alone[1],
    )
    if any(mark in found.template().replace("{{ ", "").replace(" }}", "") for mark in ("{{", "}}", '"""')):
        return None  # would mean something in a Modelfile
    try:
        same = all(found.prompt(messages) == _prompt(chat, adds_bos, messages) for messages in CHECKED)
    except DataError:
        return None
    return found if same else None


def modelfile(chat: ChatFormat, file: str, ends: Sequence[str], system: str | None, adds_bos: bool) -> tuple[str, bool]:
    """The text of the Modelfile, and whether the template was recognised.

    Args:
        file: the name of the GGUF file beside it.
        ends: the texts of the tokens that end an answer.
        system: the system text of training.
    """
    segments = read_segments(chat, adds_bos)
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{file}"]
    if segments is not None:
        if _trims(chat, segments, adds_bos):
            lines.append("# The model's own template cuts spaces around a text, and this one does not.")
        lines.append(f'TEMPLATE """{segments.template()}"""')
    else:
        lines.append(
            "# No TEMPLATE: the model has no chat template, or not one of fixed texts around questions and answers."
        )
        lines.append("# Ollama goes by what it makes of the one in the GGUF file.")
    lines += [f"PARAMETER stop {_quoted(end)}" for end in ends]
    if system:
        lines.append(f'SYSTEM """{system}"""' if '"""' not in system else '# SYSTEM: the text of training holds """.')
    return "\n".join(lines) + "\n", segments is not None


def _prompt(chat: ChatFormat, adds_bos: bool, messages: Sequence[Message]) -> str:
    text = chat.prompt_text(chat.turns(messages))
    return text.removeprefix(str(chat.tokenizer.bos_token)) if adds_bos and chat.bos_in_template else text


def _trims(chat: ChatFormat, segments: Segments, adds_bos: bool) -> bool:
    try:
        return segments.prompt(UNTRIMMED) != _prompt(chat, adds_bos, UNTRIMMED)
    except DataError:
        return False


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
