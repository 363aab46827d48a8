"""Examples to token groups, in batches: every prompt is rendered and encoded once.

A response is what follows its prompt: both are encoded together from the prompt's last special token on, and where
those ids start with the prompt's own, the rest is the response. Where they do not (a token would reach over the
boundary) the response is encoded alone, so that prompt ids are always those a generator is given.

Too long: the prompt gives first (its start is cut, BOS stays, down to `max_prompt_length`), then each response on its
own (its end is cut, and with it the end-of-turn token: a cut answer has not ended).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.errors import DataError, RecipeError
from preftune.types import Example, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # rows encoded in one call of the tokenizer: enough for its threads, little to hold in memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LengthSummary:
    """Percentiles of a length, in tokens."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int

    def __str__(self) -> str:
        return f"{self.p50} / {self.p90} / {self.p99} / {self.max}"


@dataclass(frozen=True)
class TokenizationReport:
    """What became of the rows. `lengths` are those before anything was cut, with BOS and end of turn, in tokens."""

    rows: int
    rows_cut: int
    prompts_cut: int
    responses_cut: int
    lengths: dict[str, LengthSummary]
    bos: str
    end_of_turn: str

    def __str__(self) -> str:
        lengths = ", ".join(f"{name} {summary}" for name, summary in self.lengths.items())
        cut = f"{self.prompts_cut} prompts and {self.responses_cut} responses cut" if self.rows_cut else "nothing cut"
        touched = f" ({self.rows_cut} rows touched)" if self.rows_cut else ""
        return (
            f"{self.rows} rows, {cut}{touched}\n"
            f"tokens (median / 90 % / 99 % / longest): {lengths}\n"
            f"BOS: {self.bos}\nend of turn: {self.end_of_turn}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """Encode examples and cut those that are too long.

    Args:
        max_length: tokens a prompt and any one of its responses may have together; None = any number.
        max_prompt_length: tokens that a prompt keeps at least when it is cut; None = half of `max_length`.

    Raises:
        DataError: a row cannot be rendered, or cutting leaves a response empty or a pair's responses equal.
        ModelError: the tokenizer or its template cannot be used.
        RecipeError: a limit is out of range, or `max_prompt_length` is given without `max_length`.
    """
    limits = _limits(max_length, max_prompt_length)
    chat = read_chat_format(tokenizer)
    groups: list[TokenizedGroup] = []
    for start in range(0, len(examples), BATCH):
        groups += _encode(examples[start : start + BATCH], chat)
    cut = [limits.cut(group, chat.bos_id) for group in groups] if limits else groups
    for group in cut:
        _check_different(group)
    _log_folding(examples, chat)
    return cut, _report(groups, cut, chat)


# --- ids


def _encode(examples: Sequence[Example], chat: ChatFormat) -> list[TokenizedGroup]:
    turns = [chat.turns(example.prompt) for example in examples]
    prompts = [chat.prompt_text(t, example.origin) for t, example in zip(turns, examples, strict=True)]
    prompt_ids = chat.encode(prompts)
    anchors = [_anchor(text, ids, chat) for text, ids in zip(prompts, prompt_ids, strict=True)]
    follows: list[tuple[tuple[str, list[int]], str]] = []
    for example, turn, prompt, anchor in zip(examples, turns, prompts, anchors, strict=True):
        for answer in example.responses:
            follows.append((anchor, chat.response_text(turn, prompt, answer, example.origin)))
    responses = iter(_encode_responses(follows, chat))
    return [
        TokenizedGroup(chat.with_bos(ids), [next(responses) for _ in example.responses], example.origin, example.scores)
        for example, ids in zip(examples, prompt_ids, strict=True)
    ]


def _anchor(prompt: str, ids: list[int], chat: ChatFormat) -> tuple[str, list[int]]:
    """The end of a prompt, from its last special token on, as text and ids: all that can shape what follows."""
    for place in range(len(ids) - 1, -1, -1):
        token = chat.special.get(ids[place])
        if token is not None:
            start = prompt.rfind(token)
            return (prompt[start:], ids[place:]) if start >= 0 else (prompt, ids)
    return prompt, ids


def _encode_responses(follows: Sequence[tuple[tuple[str, list[int]], str]], chat: ChatFormat) -> list[list[int]]:
    """The ids of each response after its anchor, ending with the end-of-turn token."""
    together = chat.encode([anchor + response for (anchor, _), response in follows])
    found: list[list[int] | None] = [
        ids[len(before) :] if ids[: len(before)] == before else None
        for ids, ((_, before), _) in zip(together, follows, strict=True)
    ]
    alone = iter(_encode_alone([text for (_, text), ids in zip(follows, found, strict=True) if ids is None], chat))
    responses = [next(alone) if ids is None else ids for ids in found]
    for ids in responses:
        if ids[-1:] != [chat.end_id]:
            ids.append(chat.end_id)
    return responses


def _encode_alone(texts: Sequence[str], chat: ChatFormat) -> list[list[int]]:
    """Ids without a prompt, and without the space that some tokenizers put in front of a text."""
    plain = chat.encode(texts)
    if not chat.lead or not texts:
        return plain
    lead = chat.encode([chat.lead])[0]
    led = chat.encode([chat.lead + text for text in texts])
    return [ids[len(lead) :] if ids[: len(lead)] == lead else own for ids, own in zip(led, plain, strict=True)]


# --- limits


@dataclass(frozen=True)
class _Limits:
    length: int
    prompt: int

    def cut(self, group: TokenizedGroup, bos_id: int | None) -> TokenizedGroup:
        """The group so that prompt + response <= length for each response; the group itself when it fits."""
        prompt, longest = group.prompt_ids, max(map(len, group.response_ids))
        if len(prompt) + longest <= self.length:
            return group
        kept = min(len(prompt), max(self.prompt, self.length - longest))
        room = self.length - kept
        if room < 1:
            raise DataError(
                f"{group.origin}: the prompt fills all {self.length} tokens of max_length and leaves none for the "
                f"response. Raise max_length, or set max_prompt_length (now {self.prompt}) below it."
            )
        responses = [ids[:room] for ids in group.response_ids]
        return TokenizedGroup(_keep_end(prompt, kept, bos_id), responses, group.origin, group.scores)


def _keep_end(prompt: list[int], kept: int, bos_id: int | None) -> list[int]:
    """The last `kept` tokens; a BOS in front stays in front and counts."""
    if kept >= len(prompt):
        return prompt
    if prompt[0] == bos_id:
        return [prompt[0], *prompt[len(prompt) - kept + 1 :]]
    return prompt[len(prompt) - kept :]


def _limits(max_length: int | None, max_prompt_length: int | None) -> _Limits | None:
    if max_length is None:
        if max_prompt_length is not None:
            raise RecipeError("'max_prompt_length' has no effect without 'max_length'. Set both, or neither.")
        return None
    _check_limit("max_length", max_length, at_least=2)
    if max_prompt_length is None:
        return _Limits(max_length, max_length // 2)
    _check_limit("max_prompt_length", max_prompt_length, at_least=1)
    return _Limits(max_length, max_prompt_length)


def _check_limit(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise RecipeError(f"'{name}' is {value!r}; expected a whole number of tokens, at least {at_least}.")


def _check_different(group: TokenizedGroup) -> None:
    """A pair of equal responses has no preference to learn from; cutting or a trimming template can make it one."""
    if len(group.response_ids) != 2 or group.response_ids[0] != group.response_ids[1]:
        return
    raise DataError(
        f"{group.origin}: chosen and rejected become the same {len(group.response_ids[0])} tokens "
        "(they differ only in what was cut, or in whitespace). Raise max_length, or delete the row."
    )


# --- report


def _report(groups: Sequence[TokenizedGroup], cut: Sequence[TokenizedGroup], chat: ChatFormat) -> TokenizationReport:
    pairs = [(before, after) for before, after in zip(groups, cut, strict=True) if before is not after]
    return TokenizationReport(
        rows=len(groups),
        rows_cut=len(pairs),
        prompts_cut=sum(len(after.prompt_ids) < len(before.prompt_ids) for before, after in pairs),
        responses_cut=sum(
            len(short) < len(whole)
            for before, after in pairs
            for whole, short in zip(before.response_ids, after.response_ids, strict=True)
        ),
        lengths=_lengths(groups),
        bos=chat.describe_bos(),
        end_of_turn=chat.describe_end(),
    )


def _lengths(groups: Sequence[TokenizedGroup]) -> dict[str, LengthSummary]:
    if not groups:
        return {}
    counts = {len(group.response_ids) for group in groups}
    names = {1: ["response"], 2: ["chosen", "rejected"]}.get(max(counts), [f"rank {k}" for k in range(max(counts))])
    lengths = {"prompt": _summary([len(group.prompt_ids) for group in groups])}
    for k, name in enumerate(names):
        lengths[name] = _summary([len(g.response_ids[k]) for g in groups if k < len(g.response_ids)])
    return lengths


def _summary(lengths: Sequence[int]) -> LengthSummary:
    ordered = sorted(lengths)

    def at(share: float) -> int:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return LengthSummary(sum(ordered) / len(ordered), at(0.5), at(0.9), at(0.99), ordered[-1])


def _log_folding(examples: Sequence[Example], chat: ChatFormat) -> None:
    if not chat.folds_system:
        return
    count = sum(any(message.role == "system" for message in example.prompt) for example in examples)
    if count:
        log.info("the chat template has no system role: %d system texts go in front of the user's turn", count)
