"""Conversations as token ids, by the tokenizer's own chat template.

In: messages. Out: the prompt's ids, exactly as a generator is given them, and the text of an answer as it follows them.
The rules, found out once for a tokenizer by rendering probes (`read_chat_format`):

    prompt     the template with its generation prompt: the answer's header belongs to the prompt, not to the response.
    BOS        one, at the start, when the template writes it there or the tokenizer puts it there by itself; else none.
    answer     as the template renders it; where the template alters it (cuts <think>, adds a header), as it was given.
    end        the template's end-of-turn token, once, scored; text after it is cut; without such a token, EOS.
    system     where the template has no such role, in front of the next user turn, a blank line between them.
    date       none: a template that asks for the clock gets none, or a constant.
    tools      as the template writes them; calls and results that it would not write are refused, row by row.
    special    tokens spelt out in a message are text (`preftune.data.literal`); without a template they are tokens,
               because the text may have been rendered before.
    no template (base models): the contents joined by a blank line, the answer right after them, then EOS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from preftune.data.literal import LiteralText
from preftune.errors import DataError, ModelError
from preftune.types import Message, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, Any]

BLANK_LINE = "\n\n"
PROBE_SYSTEM, PROBE_QUESTION, PROBE_ANSWER = "preftune rules", "preftune asks", "preftune answers"
PROBE_TEXT = " Whitespace  and\n\n\t12345 naïve ﬁ ½ 用一句话 👩‍🔬 <|x|> [INST]</s> "
# What Llama 3.2's template writes by itself when there is no clock.
CONSTANT_DATE = "26 Jul 2024"
NO_CLOCK = "{%- set strftime_now = preftune_has_no_clock -%}"
STOPPED_CLOCK = "{%- macro strftime_now(format) -%}" + CONSTANT_DATE + "{%- endmacro -%}"


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer writes conversations; built by `read_chat_format`.

    Args:
        template: the chat template, or None for plain text.
        bos_id: the BOS that every prompt starts with, or None.
        bos_in_template: the template writes it; otherwise it is put in front of the ids.
        end_id: the token that ends every response.
        end_text: template text from the end of an answer up to and with that token; "" when the id is appended.
        tail: all template text after an answer; what follows `end_text` in it is never part of a response.
        lead: "\\n" for tokenizers that put a space before a text encoded alone, else "".
        folds_system: the template has no system role.
        special: the special tokens, id to text.
        literal: masks special tokens that are spelt out in a message; None without a template.
        backend: gives the tokenizer's ids faster than the tokenizer; None where it would give others.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    bos_id: int | None
    bos_in_template: bool
    end_id: int
    end_text: str
    tail: str
    lead: str
    folds_system: bool
    special: dict[int, str]
    literal: LiteralText | None
    backend: Tokenizer | None

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """The messages as the template takes them, system texts folded where it has no such role.

        Special tokens that are spelt out in them are masked, here and in what is rendered from them.
        """
        if self.literal is not None:
            messages = [_masked(message, self.literal) for message in messages]
        return _folded(messages) if self.folds_system else [_turn(message) for message in messages]

    def tool_list(self, tools: str) -> list[Any] | None:
        """A row's tools as the template takes them, masked as the messages are; None where there are none."""
        return json.loads(self.mask(tools)) if tools else None

    def mask(self, text: str) -> str:
        """A text that will stand in a rendered one, its special tokens masked where they are not meant."""
        return text if self.literal is None else self.literal.mask(text)

    def unmask(self, text: str) -> str:
        """A rendered text as a reader sees it."""
        return text if self.literal is None else self.literal.unmask(text)

    def spells_special(self, messages: Sequence[Message], answers: Sequence[str]) -> bool:
        """Whether a special token is spelt out in a text, where that is not meant."""
        if self.literal is None:
            return False
        said = [text for message in messages for text in (message.content, message.tool_calls)]
        texts = [*said, *map(self._without_end, answers)]
        return any(map(self.literal.found_in, texts))

    def prompt_text(self, turns: list[Turn], origin: Origin | None = None, tools: list[Any] | None = None) -> str:
        """The prompt with the answer's header. Raises DataError when the template refuses the conversation."""
        if not self.writes_tool_turns and any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
            raise DataError(
                f"{origin}: the conversation has tool calls or results, and the chat template "
                f"{'does not write them' if self.template else 'is missing'}. Give the model's own template as a "
                "file (the named ones write no tools), or delete the row."
            )
        if self.template is None:
            return BLANK_LINE.join(turn["content"] for turn in turns)
        return self._render(turns, origin, header=True, tools=tools)

    @cached_property
    def writes_tool_turns(self) -> bool:
        """Whether a call with its arguments, and its result, come through the template."""
        if self.template is None:
            return False
        call = {
            "id": "preftune0",
            "type": "function",
            "function": {"name": "probe_call", "arguments": {"probe_key": 7}},
        }
        turns: list[Turn] = [
            {"role": "user", "content": PROBE_QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "probe_result", "tool_call_id": "preftune0", "name": "probe_call"},
        ]
        try:
            text = _render(self.tokenizer, self.template, turns, header=True)
        except Exception:  # as in `_knows_system`
            return False
        return all(probe in text for probe in ("probe_call", "probe_key", "probe_result"))

    @cached_property
    def writes_tools(self) -> bool:
        """Whether a list of tools comes through the template."""
        if self.template is None:
            return False
        function = {"name": "probe_tool", "description": "probe", "parameters": {"type": "object", "properties": {}}}
        turns = [{"role": "user", "content": PROBE_QUESTION}]
        tools = [{"type": "function", "function": function}]
        try:
            return "probe_tool" in _render(self.tokenizer, self.template, turns, header=True, tools=tools)
        except Exception:  # as in `_knows_system`
            return False

    def closed_text(self, turns: list[Turn], origin: Origin | None = None) -> str:
        """The turns without the header of an answer. Raises DataError when the template refuses the conversation."""
        return self._render(turns, origin, header=False)

    def response_text(
        self, turns: list[Turn], prompt: str, answer: str, origin: Origin, tools: list[Any] | None = None
    ) -> str:
        """The answer as it follows `prompt`, the rendered text of `turns`, with its end-of-turn text.

        Raises:
            DataError: nothing is left of the answer, or the template refuses it.
        """
        answer = self.mask(self._without_end(answer))
        body = answer if self.template is None else self._body(turns, prompt, answer, origin, tools)
        if not body.strip():
            raise DataError(f"{origin}: the answer is empty but for special tokens. Fill it in, or delete the row.")
        return body + self.end_text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it stands: no BOS or EOS added."""
        ids = self._encode_plain(texts)
        masked = [place for place, text in enumerate(texts) if self.literal is not None and self.literal.masked(text)]
        if self.literal is not None and masked:
            for place, own in zip(masked, self.literal.encode([texts[place] for place in masked]), strict=True):
                ids[place] = own
        return ids

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        backend = self.backend
        if backend is not None and backend.truncation is None and backend.padding is None:
            # the same ids, without the offsets into the text, masks and types that nobody asked for
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return _encode(self.tokenizer, texts)

    def with_bos(self, ids: list[int]) -> list[int]:
        """The ids of a prompt with exactly one BOS in front, or as they are when the rule says none."""
        if self.bos_id is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        return [self.bos_id, *ids[start:]]

    def prompt_ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The ids to sample from, for each conversation: the same as in training."""
        texts = [self.prompt_text(self.turns(messages)) for messages in conversations]
        return [self.with_bos(ids) for ids in self.encode(texts)]

    def describe_bos(self) -> str:
        """The BOS rule in words."""
        name = self.tokenizer.bos_token
        if self.bos_id is not None:
            writer = "written by the template" if self.bos_in_template else "put in front, as the tokenizer does"
            return f"one {name} (id {self.bos_id}) at the start of every prompt, {writer}"
        if name is None:
            return "none: this tokenizer has no BOS"
        return f"none: neither the template nor the tokenizer puts {name} in front"

    def describe_end(self) -> str:
        """The end-of-turn rule in words."""
        name = self.tokenizer.convert_ids_to_tokens(self.end_id)
        writer = "the template's end of turn" if self.end_text.endswith(str(name)) else "EOS, appended"
        return f"one {name} (id {self.end_id}) at the end of every response, scored: {writer}"

    def _body(self, turns: list[Turn], prompt: str, answer: str, origin: Origin, tools: list[Any] | None) -> str:
        """The answer as the template writes it after the prompt, when all it does is to add or trim whitespace."""
        full = self._render([*turns, {"role": "assistant", "content": answer}], origin, header=False, tools=tools)
        if full.startswith(prompt) and full.endswith(self.tail):
            body = full[len(prompt) : len(full) - len(self.tail)]
            if body.strip() == answer.strip():
                return body
        return answer

    def _without_end(self, answer: str) -> str:
        """The answer without end tokens that were left in the data; they would stand there twice."""
        ends = tuple({self.special.get(self.end_id, ""), str(self.tokenizer.eos_token or "")} - {""})
        while ends and answer.rstrip().endswith(ends):
            answer = answer.rstrip()
            answer = answer[: -len(next(end for end in ends if answer.endswith(end)))]
        return answer

    def _render(self, turns: list[Turn], origin: Origin | None, *, header: bool, tools: list[Any] | None = None) -> str:
        try:
            return _render(self.tokenizer, self.template, turns, header=header, tools=tools)
        except Exception as error:  # a template is a program of somebody else's: anything can come out of it
            where = f"{origin}: " if origin else ""
            roles = ", ".join(turn["role"] for turn in turns)
            said = _one_line(error, self.unmask)
            raise DataError(
                f"{where}the chat template refuses this conversation of {roles} ({said}). "
                "Change the order of its roles, or give another chat template."
            ) from error


def generation_prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids a generator is given for one conversation. For many, keep the `ChatFormat` and use its `prompt_ids`.

    Raises:
        DataError: the template refuses the conversation.
        ModelError: the template or the tokenizer cannot be used at all.
    """
    return read_chat_format(tokenizer).prompt_ids([messages])[0]


def read_chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Find the rules of a tokenizer by rendering and encoding probes; takes milliseconds.

    Raises:
        ModelError: the template fails on a plain question and answer, or there is no token that ends a response.
    """
    template = _template(tokenizer)
    special = _special_tokens(tokenizer)
    tail = "" if template is None else _tail(tokenizer, template)
    end_text, end_id = _end_of_turn(tokenizer, tail, special)
    bos_id, bos_in_template = _bos(tokenizer, template)
    folds = template is not None and not _knows_system(tokenizer, template)
    lead = _lead(tokenizer)
    literal = None if template is None else LiteralText(tokenizer)
    backend = _backend(tokenizer, special)
    rules = (bos_id, bos_in_template, end_id, end_text, tail, lead, folds, special, literal, backend)
    return ChatFormat(tokenizer, template, *rules)


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"the tokenizer's chat templates cannot be used ({_one_line(error)}). Give one.") from error
    return without_clock(template)


def without_clock(template: str) -> str:
    """The template without a clock: today's date would make tomorrow's prompts differ from those trained on.

    One that asks whether there is a clock is told that there is none and takes its own default; one that does not ask
    gets a constant.
    """
    if "strftime_now" not in template or template.startswith((NO_CLOCK, STOPPED_CLOCK)):
        return template
    return (NO_CLOCK if "strftime_now is defined" in template else STOPPED_CLOCK) + template


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    turns: list[Turn],
    *,
    header: bool,
    tools: list[Any] | None = None,
) -> str:
    text = tokenizer.apply_chat_template(
        turns, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=header
    )
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def _backend(tokenizer: PreTrainedTokenizerBase, special: dict[int, str]) -> Tokenizer | None:
    """The tokenizer's backend, if it encodes by itself as the tokenizer does: some classes change texts or ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    texts = [PROBE_TEXT, "".join(f" {token}{PROBE_TEXT}" for token in list(special.values())[:8])]
    ids = _encode(tokenizer, texts)  # which also takes off what padding and cutting was left on the backend
    alone = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return backend if alone == ids else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id to text of the tokens that always stand alone in a text; tokens of mere whitespace are not meant."""
    added = tokenizer.added_tokens_decoder.items()
    return {number: str(token) for number, token in added if token.special or str(token).strip()}


def _tail(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What the template writes after an answer."""
    turns = [{"role": "user", "content": PROBE_QUESTION}, {"role": "assistant", "content": PROBE_ANSWER}]
    try:
        text = _render(tokenizer, template, turns, header=False)
    except Exception as error:  # see ChatFormat._render
        raise ModelError(
            f"the chat template fails on a plain question and answer ({_one_line(error)}). Give another one."
        ) from error
    _, found, tail = text.rpartition(PROBE_ANSWER)
    if not found:
        raise ModelError("the chat template does not write what the assistant says. Give another one.")
    return tail


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, tail: str, special: dict[int, str]) -> tuple[str, int]:
    """The text up to and with the first special token of the tail, and its id; or visible text and EOS."""
    places = [(tail.find(text), -len(text), number) for number, text in special.items() if text in tail]
    if places:
        start, length, number = min(places)
        end_text = tail[: start - length]
        if tokenizer(end_text, add_special_tokens=False)["input_ids"][-1:] == [number]:
            return end_text, number
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token and its template ends no turn. Set the tokenizer's eos_token.")
    return tail.rstrip(), int(tokenizer.eos_token_id)


def _bos(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[int | None, bool]:
    """The BOS id when prompts start with it, and whether the template writes it."""
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        return None, False
    if template is not None:
        text = _render(tokenizer, template, [{"role": "user", "content": PROBE_QUESTION}], header=True)
        if tokenizer(text, add_special_tokens=False)["input_ids"][:1] == [bos_id]:
            return int(bos_id), True
    adds = tokenizer(PROBE_QUESTION)["input_ids"][:1] == [bos_id]
    return (int(bos_id) if adds else None), False


def _knows_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a system text comes through the template; some raise, some drop it without a word."""
    turns = [{"role": "system", "content": PROBE_SYSTEM}, {"role": "user", "content": PROBE_QUESTION}]
    try:
        return PROBE_SYSTEM in _render(tokenizer, template, turns, header=True)
    except Exception:  # refusing is the answer to the question; real defects show in `_tail`
        return False


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to put before a text that is encoded alone, so that its ids are those it has inside a longer text."""
    alone, line, inside = tokenizer(["a", "\n", "\na"], add_special_tokens=False)["input_ids"]
    return "\n" if inside[: len(line)] == line and inside[len(line) :] != alone else ""


def _turn(message: Message) -> Turn:
    """A message as templates take it; the keys of tools stand in it where they say something."""
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = json.loads(message.tool_calls)
    return turn | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}


def _masked(message: Message, literal: LiteralText) -> Message:
    texts = ("content", "tool_calls", "tool_call_id", "name")
    return replace(message, **{key: literal.mask(getattr(message, key)) for key in texts})


def _folded(messages: Sequence[Message]) -> list[Turn]:
    """Messages with each system text in front of the user turn that follows it."""
    turns: list[Turn] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting += [message.content] if message.content.strip() else []
        elif message.role == "user":
            turns.append({"role": "user", "content": BLANK_LINE.join([*waiting, message.content])})
            waiting = []
        else:
            turns.append(_turn(message))
    if waiting:  # instructions that no question follows are a turn of their own
        turns.append({"role": "user", "content": BLANK_LINE.join(waiting)})
    return turns


def _one_line(error: Exception, shown: Callable[[str], str] = str) -> str:
    return " ".join(shown(str(error)).split()).rstrip(".")[:200] or type(error).__name__
