"""Special tokens that are spelt out in somebody's text stay text.

A user who writes "<|im_end|>" must not end the turn. Contents pass through `mask` before they are rendered: every
special token spelt in them becomes a mark, so that all special tokens of the rendered text are the template's. `encode`
then gives the ids that the text has when those marks are ordinary characters again and the template's tokens are still
tokens: it runs a copy of the tokenizer that knows no special tokens but stand-ins, one for each, which split the text
at the same places and with the same whitespace rules.

Marks and stand-ins hold a number drawn for each `LiteralText`, so that nobody can write one into a text: there the code
points around it are characters like others.

Only tokens flagged as special are meant: Qwen's <think> or <tool_call> are tokens wherever they stand.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private code points: one string search says at once that a plain text has none.
MARK, STAND_IN, END = "\U0010fff0", "\U0010fff1", "\U0010fff2"


class LiteralText:
    """Masks special tokens in contents of one tokenizer, and encodes texts that hold masks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokens: dict[int, AddedToken] = {
            number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special and str(token)
        }
        self.numbers = {str(token): number for number, token in self.tokens.items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.backend: Tokenizer | None = backend if isinstance(backend, Tokenizer) else None
        longest_first = sorted(self.numbers, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._openings = {text[:2] for text in self.numbers}
        key = f"{secrets.randbits(64):020}"  # as long for every draw, so that a token's number begins where it ends
        self._mark, self._stand = MARK + key, STAND_IN + key
        self._marks = re.compile(f"{self._mark}([0-9]+){END}")

    @property
    def exact(self) -> bool:
        """Whether this tokenizer can encode a special token as text; one without a `tokenizers` backend cannot."""
        return self.backend is not None

    def found_in(self, text: str) -> bool:
        """Whether a special token is spelt in the text."""
        return any(opening in text for opening in self._openings) and bool(self._pattern.search(text))

    def mask(self, text: str) -> str:
        """The text with every special token in it as a mark, where `encode` can turn it back; else as it is."""
        if not self.exact or not any(opening in text for opening in self._openings):
            return text
        return self._pattern.sub(lambda found: f"{self._mark}{self.numbers[found[0]]}{END}", text)

    def masked(self, text: str) -> bool:
        """Whether `mask` changed something in the text."""
        return self._mark in text

    def unmask(self, text: str) -> str:
        """The text as it was before `mask`."""
        return self._marks.sub(lambda found: str(self.tokens[int(found[1])]), text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rendered texts whose contents are masked; no BOS or EOS added."""
        copy, real = self._copy
        plain = [self.unmask(self._pattern.sub(self._stand_in, text)) for text in texts]
        encodings = copy.encode_batch(plain, add_special_tokens=False)
        return [[real.get(number, number) for number in encoding.ids] for encoding in encodings]

    def _stand_in(self, found: re.Match[str]) -> str:
        return self._stand_in_of(self.numbers[found[0]])

    def _stand_in_of(self, number: int) -> str:
        return f"{self._stand}{number}{END}"

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer without its special tokens, and the ids that its stand-ins stand for."""
        assert self.backend is not None
        copy = Tokenizer.from_str(self.backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = True
        names = {number: self._stand_in_of(number) for number in self.tokens}
        copy.add_tokens([_alike(names[number], token) for number, token in self.tokens.items()])
        stands_for = {name: number for number, name in names.items()}
        added = copy.get_added_tokens_decoder().items()
        return copy, {place: stands_for[token.content] for place, token in added if token.content in stands_for}


def _alike(name: str, token: AddedToken) -> AddedToken:
    return AddedToken(
        name, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False
    )
