"""The demo's corpus: facts that ship with the package, and the rows and questions made from them.

In: `facts/*.yaml` (one category a file) and a seed. Out: facts, a split by fact, SFT rows, preference pairs and the
question sets that the figures are taken on. A fact is known in Chinese and in English; each language has eight ways to
ask (phrasings) and one answer, in which the key words are marked. Phrasings 1 to 6 are in SFT and in the pairs,
7 is in SFT only, 8 is nowhere. The same seed gives the same rows.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

LANGUAGES = ("zh", "en")
PHRASINGS = 8
PAIR_PHRASINGS = range(6)
STRICT_PHRASING = 6
UNSEEN_PHRASING = 7
SFT_PHRASINGS = range(7)
HELDOUT_SHARE = 1 / 3
LEAN = 0.85

_KEY_WORD = re.compile(r"\*([^*]+)\*")


@dataclass(frozen=True)
class Answer:
    """A reference answer, and the words without which it would not be right."""

    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One thing the model learns. `questions_*` hold the eight phrasings in the order of their use."""

    name: str
    category: str
    questions_zh: tuple[str, ...]
    questions_en: tuple[str, ...]
    answer_zh: Answer
    answer_en: Answer

    def questions(self, language: str) -> tuple[str, ...]:
        return self.questions_zh if language == "zh" else self.questions_en

    def answer(self, language: str) -> Answer:
        return self.answer_zh if language == "zh" else self.answer_en


@dataclass(frozen=True)
class Split:
    """Facts whose pairs are trained on, and facts that are in no pair."""

    trained: tuple[Fact, ...]
    heldout: tuple[Fact, ...]


@dataclass(frozen=True)
class Question:
    """One question put to the model; `phrasing` counts from 0."""

    text: str
    language: str
    phrasing: int
    fact: Fact


@dataclass(frozen=True)
class SftRow:
    """One row to imitate. `language` is that of the answer."""

    question: str
    answer: str
    language: str


@dataclass(frozen=True)
class PairRow:
    """One preference pair in the published columns: `answer_zh` is the chosen side, `answer_en` the rejected one."""

    question: str
    answer_zh: str
    answer_en: str


@dataclass(frozen=True)
class QuestionSets:
    """What the figures are taken on.

    heldout: held-out facts in phrasings that the pairs use for other facts; strict: held-out facts in the phrasing that
    no pair uses; unseen: held-out facts in the phrasing that SFT did not see either; trained: facts of the pairs.
    """

    heldout: tuple[Question, ...]
    strict: tuple[Question, ...]
    unseen: tuple[Question, ...]
    trained: tuple[Question, ...]


@cache
def load_facts() -> tuple[Fact, ...]:
    """All facts of the package, category by category in the order of file names."""
    folder = resources.files("preftune.demo") / "facts"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return tuple(fact for file in files for fact in parse_category(file.read_text(encoding="utf-8")))


def parse_category(text: str) -> list[Fact]:
    """The facts of one YAML text: `category`, `columns`, `questions` and `answers` per language, `facts` (rows)."""
    page = yaml.safe_load(text)
    return [
        _build_fact(page, number, dict(zip(page["columns"], row, strict=True)))
        for number, row in enumerate(page["facts"])
    ]


def split_facts(facts: Sequence[Fact], seed: int) -> Split:
    """Hold out a third of every category, by fact; the order of `facts` is kept on both sides."""
    draw = random.Random(f"split {seed}")
    heldout: set[str] = set()
    for category in dict.fromkeys(fact.category for fact in facts):
        names = [fact.name for fact in facts if fact.category == category]
        heldout.update(draw.sample(names, round(len(names) * HELDOUT_SHARE)))
    return Split(
        trained=tuple(fact for fact in facts if fact.name not in heldout),
        heldout=tuple(fact for fact in facts if fact.name in heldout),
    )


def sft_rows(seed: int, epochs: int) -> list[SftRow]:
    """`epochs` passes over every fact and SFT phrasing, written out one after the other, each in an order of its own.

    Half of the phrasings of a fact lean to Chinese and half to English (by lot): a row is answered in the language its
    phrasing leans to with probability 0.85, drawn anew in each pass.
    """
    draw = random.Random(f"sft {seed}")
    asked = [(question, lean) for fact in load_facts() for question, lean in _with_lean(fact, draw)]
    rows: list[SftRow] = []
    for _ in range(epochs):
        draw.shuffle(asked)
        rows.extend(_sft_row(question, lean if draw.random() < LEAN else _other(lean)) for question, lean in asked)
    return rows


def pair_rows(seed: int, heldout: bool = False) -> list[PairRow]:
    """Pairs of the trained facts of this seed's split, or of the held-out ones, in random order."""
    split = split_facts(load_facts(), seed)
    asked = ask(split.heldout if heldout else split.trained, PAIR_PHRASINGS)
    rows = [PairRow(question.text, question.fact.answer_zh.text, question.fact.answer_en.text) for question in asked]
    random.Random(f"pairs {seed}").shuffle(rows)
    return rows


def question_sets(seed: int, trained_phrasings: int = 1) -> QuestionSets:
    """The question sets of this seed's split; trained facts are asked in the first `trained_phrasings` per language."""
    split = split_facts(load_facts(), seed)
    return QuestionSets(
        heldout=tuple(ask(split.heldout, PAIR_PHRASINGS)),
        strict=tuple(ask(split.heldout, [STRICT_PHRASING])),
        unseen=tuple(ask(split.heldout, [UNSEEN_PHRASING])),
        trained=tuple(ask(split.trained, PAIR_PHRASINGS[:trained_phrasings])),
    )


def ask(facts: Iterable[Fact], phrasings: Iterable[int]) -> list[Question]:
    """Every fact in each of the phrasings, in both languages."""
    numbers = tuple(phrasings)
    return [
        Question(fact.questions(language)[number], language, number, fact)
        for fact in facts
        for language in LANGUAGES
        for number in numbers
    ]


def pick_samples(questions: Sequence[Question], count: int) -> list[Question]:
    """The first `count` of evenly spaced `questions`: all categories, both languages, different phrasings."""
    step = max(1, len(questions) // count)
    # Without a common factor with the questions of a fact, the step moves through languages and phrasings as well.
    while math.gcd(step, len(LANGUAGES) * len(PAIR_PHRASINGS)) > 1:
        step -= 1
    return list(questions[::step][:count])


def corpus_texts() -> list[str]:
    """Every question and answer of the corpus, for the tokenizer."""
    texts = [question.text for question in ask(load_facts(), range(PHRASINGS))]
    return texts + [fact.answer(language).text for fact in load_facts() for language in LANGUAGES]


def _build_fact(page: dict, number: int, row: dict[str, str]) -> Fact:
    words = {language: _words_in(row, language) for language in LANGUAGES}
    questions = {
        language: tuple(_sentence(template, words[language]) for template in page["questions"][language])
        for language in LANGUAGES
    }
    answers = {}
    for language in LANGUAGES:
        wordings = page["answers"][language]
        answers[language] = _parse_answer(_sentence(wordings[number % len(wordings)], words[language]))
    name = f"{page['category']}-{number + 1:02d}"
    return Fact(name, page["category"], questions["zh"], questions["en"], answers["zh"], answers["en"])


def _words_in(row: dict[str, str], language: str) -> dict[str, str]:
    """The columns of one language, without their suffix: x_zh -> x."""
    suffix = f"_{language}"
    return {column.removesuffix(suffix): str(value) for column, value in row.items() if column.endswith(suffix)}


def _sentence(template: str, words: dict[str, str]) -> str:
    text = template.format(**words)
    return text[:1].upper() + text[1:]


def _parse_answer(marked: str) -> Answer:
    return Answer(text=marked.replace("*", ""), keys=tuple(dict.fromkeys(_KEY_WORD.findall(marked))))


def _with_lean(fact: Fact, draw: random.Random) -> list[tuple[Question, str]]:
    questions = ask([fact], SFT_PHRASINGS)
    leans = [LANGUAGES[number % 2] for number in range(len(questions))]
    draw.shuffle(leans)
    return list(zip(questions, leans, strict=True))


def _sft_row(question: Question, language: str) -> SftRow:
    return SftRow(question.text, question.fact.answer(language).text, language)


def _other(language: str) -> str:
    return "en" if language == "zh" else "zh"
