"""Cutting groups that are too long.

    prompt_then_response  the prompt gives first (its start goes, BOS stays, down to `max_prompt_length`); then each
                          response on its own (its end goes)
    keep_end              the same; without `max_prompt_length` the prompt gives all but BOS and the answer's header
    keep_start            the prompt's end goes instead, but for the answer's header; then the ends of the responses
    drop                  the row is left out
    error                 the row is refused

What the prompt gives is what the longest response needs, so that all responses keep the same prompt. A response is
never cut because another one is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from preftune.data.chat import PROBE_QUESTION, ChatFormat
from preftune.errors import DataError, RecipeError
from preftune.types import Message, TokenizedGroup

TruncationMode = Literal["prompt_then_response", "keep_start", "keep_end", "drop", "error"]
CutResponseEnd = Literal["none", "append"]

# Other tools' keys with their values, and what to write instead. ms-swift: truncation_strategy; TRL: truncation_mode;
# axolotl: excess_length_strategy.
TRUNCATION_ALIASES: dict[str, dict[str, TruncationMode]] = {
    "truncation_strategy": {"delete": "drop", "truncation_left": "keep_end", "left": "keep_end", "right": "keep_start"},
    "truncation_mode": {"keep_end": "keep_end", "keep_start": "keep_start"},
    "excess_length_strategy": {"drop": "drop", "truncate": "keep_start", "raise": "error"},
}


@dataclass(frozen=True)
class Truncation:
    """How groups are cut; built by `build_truncation`.

    Args:
        mode: see above.
        length: tokens a prompt and any one of its responses may have together.
        prompt: tokens that a prompt keeps at least.
        header: tokens at the end of a prompt that open the answer.
        bos_id: a BOS in front stays in front and counts.
        end_id: put at the end of a cut response in place of its last token; None = a cut response has not ended.
    """

    mode: TruncationMode
    length: int
    prompt: int
    header: int
    bos_id: int | None
    end_id: int | None

    def cut(self, group: TokenizedGroup) -> TokenizedGroup | None:
        """The group so that prompt + response <= length for each response; itself when it fits; None when dropped.

        Raises:
            DataError: the group is too long and the mode is `error`, or no token is left for the response.
        """
        prompt, longest = group.prompt_ids, max(map(len, group.response_ids))
        if len(prompt) + longest <= self.length:
            return group
        if self.mode == "drop":
            return None
        if self.mode == "error":
            raise DataError(
                f"{group.origin}: prompt and response have {len(prompt)} + {longest} tokens, max_length is "
                f"{self.length}. Raise it, or choose another truncation: {', '.join(get_args(TruncationMode)[:-1])}."
            )
        kept = min(len(prompt), max(self.prompt, self.length - longest))
        room = self.length - kept
        if room < 1:
            raise DataError(
                f"{group.origin}: the prompt fills all {self.length} tokens of max_length and leaves none for the "
                f"response. Raise max_length, or set max_prompt_length (now {self.prompt}) below it."
            )
        responses = [self._response(ids, room) for ids in group.response_ids]
        return replace(group, prompt_ids=self._prompt(prompt, kept), response_ids=responses)

    def _prompt(self, prompt: list[int], kept: int) -> list[int]:
        if kept >= len(prompt):
            return prompt
        if self.mode == "keep_start":
            header = min(self.header, kept)
            return prompt[: kept - header] + prompt[len(prompt) - header :]
        if prompt[0] == self.bos_id:
            return [prompt[0], *prompt[len(prompt) - kept + 1 :]]
        return prompt[len(prompt) - kept :]

    def _response(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        return ids[:room] if self.end_id is None else [*ids[: room - 1], self.end_id]


def build_truncation(
    chat: ChatFormat,
    max_length: int | None,
    max_prompt_length: int | None,
    mode: TruncationMode = "prompt_then_response",
    cut_response_end: CutResponseEnd = "none",
) -> Truncation | None:
    """The rule for these limits; None where there are none.

    Raises:
        RecipeError: a value is out of range, or `max_prompt_length` or a mode is given without `max_length`.
    """
    check_choice("truncation", mode, get_args(TruncationMode))
    check_choice("cut_response_end", cut_response_end, get_args(CutResponseEnd))
    if max_length is None:
        if max_prompt_length is not None:
            raise RecipeError("'max_prompt_length' has no effect without 'max_length'. Set both, or neither.")
        if mode != "prompt_then_response":
            raise RecipeError(f"'truncation: {mode}' has no effect without 'max_length'. Set both, or neither.")
        return None
    check_limit("max_length", max_length, at_least=2)
    header = header_length(chat)
    if max_prompt_length is None:
        least = header + (chat.bos_id is not None)
        floor = max(1, least) if mode == "keep_end" else max_length // 2
    else:
        floor = check_limit("max_prompt_length", max_prompt_length, at_least=1)
    end_id = chat.end_id if cut_response_end == "append" else None
    return Truncation(mode, max_length, floor, header, chat.bos_id, end_id)


def check_limit(name: str, value: object, at_least: int) -> int:
    """The value, when it is a whole number in range. Raises RecipeError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise RecipeError(f"'{name}' is {value!r}; expected a whole number of tokens, at least {at_least}.")
    return value


def check_different(group: TokenizedGroup) -> None:
    """Of two equal responses none is better; cutting or a trimming template can make them equal.

    Raises:
        DataError: they are equal though one is better.
    """
    for better, worse in combinations(range(len(group.response_ids)), 2):
        if group.response_ids[better] != group.response_ids[worse]:
            continue
        pair = len(group.response_ids) == 2
        if not pair and group.scores and group.scores[better] == group.scores[worse]:
            continue
        names = "chosen and rejected" if pair else f"the responses of rank {better} and {worse}"
        raise DataError(
            f"{group.origin}: {names} become the same {len(group.response_ids[better])} tokens "
            "(they differ only in what was cut, or in whitespace). Raise max_length, or delete the row."
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises RecipeError when the value is not one of the choices."""
    if value not in choices:
        raise RecipeError(f"'{name}' is {value!r}; expected one of {', '.join(choices)}.")


def header_length(chat: ChatFormat) -> int:
    """Tokens of the answer's header."""
    if chat.template is None:
        return 0
    asked = [Message("user", PROBE_QUESTION)]
    closed, opened = chat.encode([chat.closed_text(chat.turns(asked)), chat.prompt_text(chat.turns(asked))])
    common = 0
    while common < min(len(closed), len(opened)) and closed[common] == opened[common]:
        common += 1
    return len(opened) - common
