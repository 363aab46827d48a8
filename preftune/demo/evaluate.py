"""The demo's figures: what a model answers, in which language, and whether it is right.

In: a model, its tokenizer and questions. Out: answers (greedy, or sampled at temperature 1) and figures on them. An
answer is Chinese when it has more CJK characters than Latin words. It is right when the key words of the reference in
the answer's own language are in it. It repeats itself when it has no end in 64 tokens, or fewer than 70 % of its
4-grams of tokens are distinct.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.demo.corpus import Answer, Question, QuestionSets

MAX_NEW_TOKENS = 64
DISTINCT_FLOOR = 0.7

_CJK = re.compile(r"[\u4e00-\u9fff]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_NUMERALS = "0-9〇一二三四五六七八九十百"


@dataclass(frozen=True)
class Generated:
    """One answer. `ids` are without the end token; `ended` says whether there was one; `tokens` counts it."""

    text: str
    ids: tuple[int, ...]
    ended: bool

    @property
    def tokens(self) -> int:
        return len(self.ids) + self.ended

    @property
    def is_chinese(self) -> bool:
        return is_chinese(self.text)

    @property
    def repeats(self) -> bool:
        return not self.ended or distinct_share(self.ids) < DISTINCT_FLOOR


@dataclass(frozen=True)
class Figures:
    """Shares of a question set in [0, 1], and mean lengths in tokens (0 where no answer is in that language).

    correct: key words present in the answer's own language; correct_zh_ref: key words of the Chinese reference present;
    exact: equal to a reference; repetition: see the module.
    """

    questions: int
    zh_share: float
    correct: float
    correct_zh_ref: float
    exact: float
    repetition: float
    mean_tokens: float
    mean_tokens_zh: float
    mean_tokens_en: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: QuestionSets,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Figures]:
    """Figures of every set, greedy, and of the held-out set sampled too (`heldout_sampled`).

    `on_progress` is called with the number of questions answered since its last call.
    """
    figures = {}
    for name in ("heldout", "strict", "unseen", "trained"):
        questions = getattr(sets, name)
        figures[name] = score(questions, answer(model, tokenizer, _texts(questions), on_progress=on_progress))
    sampled = answer(model, tokenizer, _texts(sets.heldout), sample_seed=seed, on_progress=on_progress)
    return figures | {"heldout_sampled": score(sets.heldout, sampled)}


def count_answers(sets: QuestionSets) -> int:
    """How many answers `evaluate_sets` makes, for a progress bar."""
    return 2 * len(sets.heldout) + len(sets.strict) + len(sets.unseen) + len(sets.trained)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    sample_seed: int | None = None,
    batch_size: int = 128,
    on_progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """One answer a question, in the order of `questions`: greedy, or sampled at temperature 1 when a seed is given.

    Batches are left-padded and sorted by prompt length. The caller's random state and training mode are restored.
    """
    prompts = [_prompt_ids(tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[Generated | None] = [None] * len(prompts)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.inference_mode():
        if sample_seed is not None:
            torch.manual_seed(sample_seed)
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = _generate(model, tokenizer, [prompts[index] for index in indices], sample_seed is not None)
            for index, generated in zip(indices, batch, strict=True):
                answers[index] = generated
            if on_progress is not None:
                on_progress(len(indices))
    model.train(was_training)
    return [generated for generated in answers if generated is not None]


def score(questions: Sequence[Question], answers: Sequence[Generated]) -> Figures:
    """The figures of `answers`, one for each of `questions`. Raises ValueError when there are none."""
    if not questions:
        raise ValueError("expected at least one question to score, found none")
    pairs = list(zip(questions, answers, strict=True))
    chinese = [given.tokens for given in answers if given.is_chinese]
    english = [given.tokens for given in answers if not given.is_chinese]
    return Figures(
        questions=len(pairs),
        zh_share=len(chinese) / len(pairs),
        correct=_mean([is_correct(asked, given.text) for asked, given in pairs]),
        correct_zh_ref=_mean([has_keys(given.text, asked.fact.answer_zh) for asked, given in pairs]),
        exact=_mean([given.text in (asked.fact.answer_zh.text, asked.fact.answer_en.text) for asked, given in pairs]),
        repetition=_mean([given.repeats for given in answers]),
        mean_tokens=_mean([given.tokens for given in answers]),
        mean_tokens_zh=_mean(chinese),
        mean_tokens_en=_mean(english),
    )


def is_chinese(text: str) -> bool:
    """More CJK characters than Latin words."""
    return len(_CJK.findall(text)) > len(_LATIN_WORD.findall(text))


def is_correct(question: Question, text: str) -> bool:
    """The key words of the reference in the language of `text` are all in it."""
    return has_keys(text, question.fact.answer_zh if is_chinese(text) else question.fact.answer_en)


def has_keys(text: str, reference: Answer) -> bool:
    """All key words of `reference` are in `text`, as whole words: low is not in slow, nor 二月 in 十二月."""
    return all(_contains(text, key) for key in reference.keys)


def distinct_share(ids: Sequence[int]) -> float:
    """Distinct 4-grams divided by all 4-grams; 1 when there are none."""
    grams = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _contains(text: str, key: str) -> bool:
    before = rf"(?<![{_NUMERALS}])" if re.match(rf"[{_NUMERALS}]", key) else r"(?<![A-Za-z])"
    return re.search(before + re.escape(key) + r"(?![A-Za-z])", text, re.IGNORECASE) is not None


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], sampled: bool
) -> list[Generated]:
    width = max(len(ids) for ids in prompts)
    input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    generate: Any = model.generate  # annotated as a tensor by its mixin
    output = generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **choice,
    )
    return [_cut_at_end(tokenizer, row) for row in output[:, width:].tolist()]


def _cut_at_end(tokenizer: PreTrainedTokenizerBase, row: list[int]) -> Generated:
    ended = tokenizer.eos_token_id in row
    ids = tuple(row[: row.index(tokenizer.eos_token_id)] if ended else row)
    return Generated(str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip(), ids, ended)


def _texts(questions: Sequence[Question]) -> list[str]:
    return [question.text for question in questions]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
