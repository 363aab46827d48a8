"""Token ids in, text out piece by piece: no half characters, and nothing from the first stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"  # what half a character is decoded to


class AnswerText:
    """The text of one answer as its tokens come.

    Two ends into the ids are kept: text up to `_told` is out, and the ids from `_from` on are decoded again with each
    token, because a token's text may depend on the one before it.

    Args:
        tokenizer: special tokens are left out of the text.
        stops: the answer ends before the first of these strings.
        before: ids that the text goes on from: some tokenizers leave out a space at the start of a text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.stopped = False
        self.said = 0  # characters that were handed out
        self._ids: list[int] = list(before)
        self._from, self._told = 0, len(self._ids)
        self._held = ""  # may be the start of a stop string

    @property
    def length(self) -> int:
        """Characters known so far, handed out or not."""
        return self.said + len(self._held)

    def add(self, token: int) -> str:
        """The text that this token brings to an end; empty where it is not certain yet, or after a stop string."""
        self._ids.append(token)
        before, text = self._decode(self._from, self._told), self._decode(self._from, len(self._ids))
        if len(text) <= len(before) or text.endswith(HALF):
            return ""
        self._from, self._told = self._told, len(self._ids)
        return self._take(text[len(before) :])

    def close(self) -> str:
        """What is left when no token follows."""
        rest = self._decode(self._from, len(self._ids))[len(self._decode(self._from, self._told)) :]
        self._told = len(self._ids)
        piece = self._take(rest) + self._held  # nothing is held behind a stop string
        self.said, self._held = self.said + len(self._held), ""
        return piece

    def _decode(self, start: int, end: int) -> str:
        return str(self.tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _take(self, text: str) -> str:
        """What of the held and the new text can be handed out."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        self.stopped = bool(found)
        keep = min(found) if found else len(text) - self._beginning(text)
        piece, self._held = text[:keep], "" if found else text[keep:]
        self.said += len(piece)
        return piece

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` that a stop string may begin with."""
        return max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


class TokenTexts:
    """The text of single tokens as it stands behind others: with its space, special tokens by their names."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._lead = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            text = self._decode([*self._anchor, token])
            own = text[len(self._lead) :] if text.startswith(self._lead) else self._decode([token])
            self._known[token] = own
        return self._known[token]

    def bytes_of(self, token: int) -> list[int] | None:
        """UTF-8 bytes; None of a token that is a part of a character."""
        text = self(token)
        return None if HALF in text else list(text.encode("utf-8", "replace"))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
