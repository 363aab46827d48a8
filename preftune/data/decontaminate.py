"""Rows whose conversation holds a benchmark's question are left out.

A question is found in a row when more than `overlap` of its words lie in runs of `ngram` words that the row has too
(as in Tülu 3, arXiv:2411.15124: 8-grams, one half); one shorter than that, when all of it stands in the row.
Words are compared in lower case without punctuation; a Chinese, Japanese or Korean character is a word.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from preftune.data.names import QUESTIONS
from preftune.errors import RecipeError
from preftune.types import Example

ASKED = (*QUESTIONS, "turns", "messages", "problem")  # turns: MT-Bench and Arena-Hard
_WORD = re.compile(r"[㐀-鿿豈-﫿぀-ヿ가-힣]|[^\W_㐀-鿿豈-﫿぀-ヿ가-힣]+")


class Questions:
    """A benchmark's questions, indexed by their runs of words.

    Raises:
        RecipeError: `ngram` or `overlap` is out of range, or no question has a word.
    """

    def __init__(self, questions: Iterable[str], *, ngram: int = 8, overlap: float = 0.5) -> None:
        if ngram < 1 or not 0 <= overlap < 1:
            raise RecipeError(f"ngram is {ngram} and overlap {overlap}; expected ngram >= 1 and 0 <= overlap < 1.")
        self.overlap = overlap
        self.texts: list[str] = []
        self._lengths: list[int] = []
        # run of words -> where it begins: (number of the question, place)
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        for text in questions:
            words = _words(text)
            if not words:
                continue
            run = min(ngram, len(words))
            for place in range(len(words) - run + 1):
                self._places[tuple(words[place : place + run])].append((len(self.texts), place))
            self.texts.append(text)
            self._lengths.append(len(words))
        if not self.texts:
            raise RecipeError("there is no question with words in it to compare with. Give a file of questions.")
        self._runs = sorted({len(run) for run in self._places})

    def find(self, example: Example) -> str | None:
        """The first question that stands in one of the example's user turns, or None."""
        for message in example.prompt:
            if message.role != "user":
                continue
            number = self._find(_words(message.content))
            if number is not None:
                return self.texts[number]
        return None

    def _find(self, words: list[str]) -> int | None:
        covered: dict[int, set[int]] = defaultdict(set)
        for run in self._runs:
            for start in range(len(words) - run + 1):
                for number, place in self._places.get(tuple(words[start : start + run]), ()):
                    covered[number].update(range(place, place + run))
        hits = [number for number, places in covered.items() if len(places) > self.overlap * self._lengths[number]]
        return min(hits, default=None)


def drop_contaminated(examples: Sequence[Example], questions: Questions) -> tuple[list[Example], list[Example]]:
    """The examples that hold none of the questions, in order, and the others."""
    kept: list[Example] = []
    others: list[Example] = []
    for example in examples:
        (kept if questions.find(example) is None else others).append(example)
    return kept, others


def asked_in(values: Mapping[str, Any]) -> list[str]:
    """The questions of a benchmark's row, which has no answers: a text, or turns as texts or messages."""
    asked: Any = next((values[name] for name in ASKED if values.get(name)), [])
    turns = [asked] if isinstance(asked, str | dict) else asked if isinstance(asked, list) else []
    spoken = [turn for turn in turns if not isinstance(turn, dict) or turn.get("role", "user") == "user"]
    texts = [turn.get("content") if isinstance(turn, dict) else turn for turn in spoken]
    return [text for text in texts if isinstance(text, str)]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
