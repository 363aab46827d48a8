"""Examples to token groups: encoded in batches (`encode`), cut (`truncate`), counted (`token_report`).

Where a cache folder is given, ids that were made before are read from it (`token_cache`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from preftune.data.chat import ChatFormat, read_chat_format
from preftune.data.decontaminate import Questions, drop_contaminated
from preftune.data.dedupe import drop_duplicates
from preftune.data.encode import Encoded, encode_examples
from preftune.data.princeton import PrincetonTruncation, build_princeton_truncation, encode_examples_princeton
from preftune.data.token_cache import TokenCache
from preftune.data.token_report import LengthSummary, TokenizationReport, build_report
from preftune.data.truncate import (
    CutResponseEnd,
    Truncation,
    TruncationMode,
    build_truncation,
    check_choice,
    check_different,
)
from preftune.errors import DataError, RecipeError
from preftune.types import Example, Origin, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LengthSummary", "TokenizationReport", "tokenize_examples"]

Tokenization = Literal["preftune", "princeton"]
Encoder = Callable[[Sequence[Example], ChatFormat], list[Encoded]]
PieceEncoder = Callable[[Sequence[Example]], tuple[list[TokenizedGroup], dict[str, list[Origin]]]]
ENCODERS: dict[str, Encoder] = {
    "preftune": encode_examples,
    "princeton": encode_examples_princeton,
}
BATCH = 1000  # rows encoded in one call of the tokenizer: enough for its threads, little to hold in memory
REASONS = DUPLICATE, CONTAMINATED, BAD, TOO_LONG = (
    "duplicates",
    "with a benchmark's question",
    "bad rows",
    "longer than max_length",
)

log = logging.getLogger(__name__)


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    truncation: TruncationMode = "prompt_then_response",
    cut_response_end: CutResponseEnd = "none",
    on_bad_row: Literal["error", "skip"] = "error",
    dedupe: bool = False,
    decontaminate: Questions | None = None,
    tokenization: Tokenization = "preftune",
    num_proc: int = 1,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[TokenizedGroup], TokenizationReport]:
    """Encode examples and cut those that are too long.

    Args:
        max_length: tokens a prompt and any one of its responses may have together; None = any number.
        max_prompt_length: tokens that a prompt keeps at least when it is cut; None = half of `max_length`.
        truncation: what goes first when a row is too long, see `preftune.data.truncate`.
        cut_response_end: `append` puts the end-of-turn token at the end of a cut response; `none`: it has not ended.
        on_bad_row: of a row that cannot be rendered, or whose responses cutting makes empty or equal: refuse it, or
            leave it out and count it.
        dedupe: leave out rows equal to an earlier one.
        decontaminate: leave out rows in which one of these questions stands, see `preftune.data.decontaminate`.
        tokenization: `princeton` gives the ids of the SimPO repository, see `preftune.data.princeton`.
        num_proc: processes that encode.
        cache: folder for token ids; None = they are not kept.
        progress: called with the rows done and all rows, after each batch.

    Raises:
        DataError: a row is bad and `on_bad_row` is `error`.
        ModelError: the tokenizer or its template cannot be used.
        RecipeError: a setting is out of range or has no effect.
    """
    _check(on_bad_row, tokenization, num_proc)
    chat = read_chat_format(tokenizer)
    rule = _rule(chat, tokenization, max_length, max_prompt_length, truncation, cut_response_end)
    dropped: dict[str, list[Origin]] = {name: [] for name in REASONS}
    if dedupe:
        examples, doubles = drop_duplicates(examples)
        dropped[DUPLICATE] = [example.origin for example in doubles]
    if decontaminate is not None:
        examples, others = drop_contaminated(examples, decontaminate)
        dropped[CONTAMINATED] = [example.origin for example in others]
    encoded = _encoded(examples, chat, tokenization, num_proc, cache, progress)
    whole, groups = _cut_all(encoded, examples, rule, on_bad_row, dropped)
    log_chat(examples, chat)
    special = (
        0 if tokenization == "princeton" else sum(chat.spells_special(row.prompt, row.responses) for row in examples)
    )
    return groups, build_report(whole, groups, dropped, chat, special)


def piece_encoder(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None,
    truncation: TruncationMode,
    cut_response_end: CutResponseEnd,
    on_bad_row: Literal["error", "skip"],
    decontaminate: Questions | None,
    tokenization: Tokenization,
) -> PieceEncoder:
    """What `tokenize_examples` does, for data that comes in pieces: a function of the examples of one piece.

    It gives their groups, and of each reason the rows that were left out. The arguments are those of
    `tokenize_examples`.
    """
    chat = read_chat_format(tokenizer)
    rule = _rule(chat, tokenization, max_length, max_prompt_length, truncation, cut_response_end)

    def encode(examples: Sequence[Example]) -> tuple[list[TokenizedGroup], dict[str, list[Origin]]]:
        dropped: dict[str, list[Origin]] = {name: [] for name in REASONS}
        if decontaminate is not None:
            examples, others = drop_contaminated(examples, decontaminate)
            dropped[CONTAMINATED] = [example.origin for example in others]
        encoded = ENCODERS[tokenization](examples, chat) if examples else []
        return _cut_all(encoded, examples, rule, on_bad_row, dropped)[1], dropped

    return encode


def _rule(
    chat: ChatFormat,
    tokenization: Tokenization,
    max_length: int | None,
    max_prompt_length: int | None,
    truncation: TruncationMode,
    cut_response_end: CutResponseEnd,
) -> Truncation | PrincetonTruncation | None:
    if tokenization == "princeton":
        return build_princeton_truncation(max_length, max_prompt_length, truncation)
    return build_truncation(chat, max_length, max_prompt_length, truncation, cut_response_end)


def _cut_all(
    encoded: Sequence[Encoded],
    examples: Sequence[Example],
    rule: Truncation | PrincetonTruncation | None,
    on_bad_row: Literal["error", "skip"],
    dropped: dict[str, list[Origin]],
) -> tuple[list[TokenizedGroup], list[TokenizedGroup]]:
    """The groups that are kept, whole and cut; `dropped` takes up the others."""
    whole: list[TokenizedGroup] = []
    groups: list[TokenizedGroup] = []
    for group, example in zip(encoded, examples, strict=True):
        try:
            short = _cut(group, rule)
        except DataError as error:
            if on_bad_row == "error":
                raise
            log.debug("left out: %s", error)
            dropped[BAD].append(example.origin)
            continue
        if short is None or isinstance(group, DataError):
            dropped[TOO_LONG].append(example.origin)
            continue
        whole.append(group)
        groups.append(short)
    return whole, groups


def _cut(group: Encoded, rule: Truncation | PrincetonTruncation | None) -> TokenizedGroup | None:
    """The group within its limits, or None when it is dropped. Raises DataError for a bad row."""
    if isinstance(group, DataError):
        raise group
    short = rule.cut(group) if rule else group
    if short is not None:
        check_different(short)
    return short


def _encoded(
    examples: Sequence[Example],
    chat: ChatFormat,
    tokenization: Tokenization,
    num_proc: int,
    cache: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> list[Encoded]:
    """The groups, uncut, from the cache or made."""
    store = None if cache is None else TokenCache(Path(cache))
    path = store.path(examples, chat, tokenization) if store else None
    found = store.load(path, examples) if store and path else None
    if found is not None:
        log.info("token ids of %d rows come from %s", len(found), path)
        return found
    encoded: list[Encoded] = []
    for batch in _batches(examples, chat, ENCODERS[tokenization], num_proc):
        encoded += batch
        if progress is not None:
            progress(len(encoded), len(examples))
    if store and path:
        store.save(path, encoded, examples)
    return encoded


def _batches(examples: Sequence[Example], chat: ChatFormat, encode: Encoder, num_proc: int) -> Iterator[list[Encoded]]:
    starts = range(0, len(examples), BATCH)
    if num_proc == 1 or len(starts) < 2:
        for start in starts:
            yield encode(examples[start : start + BATCH], chat)
        return
    # Forked: the children find examples and tokenizer in memory, and a script needs no __main__ guard.
    work = (examples, chat, encode)
    with multiprocessing.get_context("fork").Pool(min(num_proc, len(starts)), _take, work) as pool:
        yield from pool.imap(_encode_batch, starts)


_work: tuple[Sequence[Example], ChatFormat, Encoder]  # in a child: what `_take` was given


def _take(*work: Any) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not come along; one process, one thread
    _work = work


def _encode_batch(start: int) -> list[Encoded]:
    examples, chat, encode = _work
    return encode(examples[start : start + BATCH], chat)


def _check(on_bad_row: object, tokenization: object, num_proc: object) -> None:
    check_choice("on_bad_row", on_bad_row, ("error", "skip"))
    check_choice("tokenization", tokenization, tuple(ENCODERS))
    if not isinstance(num_proc, int) or isinstance(num_proc, bool) or num_proc < 1:
        raise RecipeError(f"'num_proc' is {num_proc!r}; expected a number of processes, at least 1.")


def log_chat(examples: Sequence[Example], chat: ChatFormat) -> None:
    """Say what of these examples the chat template takes in its own way."""
    _log_folding(examples, chat)
    _log_thinking(examples, chat)
    _log_tools(examples, chat)


def _log_tools(examples: Sequence[Example], chat: ChatFormat) -> None:
    count = sum(bool(example.tools) for example in examples)
    if count and not chat.writes_tools:
        log.warning(
            "The chat template does not write tools: those of %d rows are not in their prompts. Give the model's own "
            "template as a file (the named ones write no tools), or ignore the column with columns: {tools: null}.",
            count,
        )


def _log_folding(examples: Sequence[Example], chat: ChatFormat) -> None:
    if not chat.folds_system:
        return
    count = sum(any(message.role == "system" for message in example.prompt) for example in examples)
    if count:
        log.info("the chat template has no system role: %d system texts go in front of the user's turn", count)


def _log_thinking(examples: Sequence[Example], chat: ChatFormat) -> None:
    template = chat.template or ""
    if not examples or "enable_thinking" not in template or "set enable_thinking" in template:
        return
    if not any("</think>" in response for example in examples for response in example.responses):
        log.warning(
            "The chat template has a thinking mode, and no response has thoughts: they are trained as answers of that "
            "mode. Set chat_template_kwargs: {enable_thinking: false} to train answers without thoughts."
        )
