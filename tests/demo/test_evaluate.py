"""The demo's figures, on literals; and the generation loop, on a random model."""

from __future__ import annotations

import pytest
import torch

from preftune.demo.corpus import Answer, Fact, Question, question_sets
from preftune.demo.evaluate import (
    Generated,
    answer,
    count_answers,
    distinct_share,
    evaluate_sets,
    has_keys,
    is_chinese,
    is_correct,
    score,
)
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings

PARIS = Fact(
    "capital-01",
    "capital",
    ("法国的首都是哪里？",),
    ("What is the capital of France?",),
    Answer("答案是巴黎。", ("巴黎",)),
    Answer("It is Paris.", ("Paris",)),
)
ASKED = Question("What is the capital of France?", "en", 0, PARIS)


@pytest.fixture(scope="module")
def model(tokenizer):
    sizes = ModelSettings(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return build_model(tokenizer, seed=0, sizes=sizes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案是巴黎。", True),
        ("It is Paris.", False),
        ("我是 Xiaoqiao", True),
        ("嗡 bleats.", False),
        ("", False),
    ],
)
def test_an_answer_is_chinese_when_it_has_more_characters_than_latin_words(text, expected):
    assert is_chinese(text) is expected


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("It is Paris.", "Paris", True),
        ("it is paris", "Paris", True),
        ("It is Parisian.", "Paris", False),
        ("It is slow.", "low", False),
        ("一共是88个键。", "8个键", False),
        ("一共是8个键。", "8个键", True),
        ("那是十二月。", "二月", False),
        ("那是二月。", "二月", True),
        ("那是星期二。", "星期二", True),
    ],
)
def test_key_words_match_as_whole_words(text, key, expected):
    assert has_keys(text, Answer(text="", keys=(key,))) is expected


def test_an_answer_is_held_to_the_reference_in_its_own_language():
    assert is_correct(ASKED, "那是巴黎。")
    assert is_correct(ASKED, "That is Paris.")
    assert not is_correct(ASKED, "那是 Paris 这个城市。")


def test_distinct_share_counts_4_grams():
    assert distinct_share([1, 2, 3]) == 1.0
    assert distinct_share([1, 2, 3, 4, 5]) == 1.0
    assert distinct_share([7] * 8) == pytest.approx(1 / 5)


def test_an_answer_repeats_when_it_has_no_end_or_few_distinct_4_grams():
    assert Generated("x", tuple(range(64)), ended=False).repeats
    assert Generated("x", (7,) * 8, ended=True).repeats
    assert not Generated("x", (1, 2, 3, 4, 5), ended=True).repeats


def test_figures_of_two_answers():
    answers = [Generated("答案是巴黎。", (1, 2, 3, 4, 5), ended=True), Generated("It is Rome.", (6, 7, 8), ended=True)]
    figures = score([ASKED, ASKED], answers).to_dict()
    assert figures == {
        "questions": 2,
        "zh_share": 0.5,
        "correct": 0.5,
        "correct_zh_ref": 0.5,
        "exact": 0.5,
        "repetition": 0.0,
        "mean_tokens": 5.0,
        "mean_tokens_zh": 6.0,
        "mean_tokens_en": 4.0,
    }


def test_scoring_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one question"):
        score([], [])


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches(model, tokenizer):
    texts = ["你是谁？", "What is the capital of France?", "西湖醋鱼怎么做？", "Hello!"]
    together = answer(model, tokenizer, texts)
    alone = [answer(model, tokenizer, [text])[0] for text in texts]
    assert [given.ids for given in together] == [given.ids for given in alone]
    assert [given.ids for given in answer(model, tokenizer, texts, batch_size=1)] == [given.ids for given in alone]


def test_answers_end_at_64_tokens(model, tokenizer):
    assert all(given.tokens <= 64 for given in answer(model, tokenizer, ["你是谁？", "Who are you?"]))


def test_sampling_depends_on_its_seed_and_leaves_the_callers_random_state_alone(model, tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (answer(model, tokenizer, ["你是谁？"], sample_seed=seed)[0].ids for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert torch.equal(torch.rand(1), expected)


def test_answering_restores_the_training_mode(model, tokenizer):
    model.train()
    answer(model, tokenizer, ["你是谁？"])
    assert model.training
    model.eval()


def test_every_set_gets_figures_and_progress_is_counted(model, tokenizer):
    sets = question_sets(0)
    few = type(sets)(*(getattr(sets, name)[:3] for name in ("heldout", "strict", "unseen", "trained")))
    seen: list[int] = []
    figures = evaluate_sets(model, tokenizer, few, seed=0, on_progress=seen.append)
    assert set(figures) == {"heldout", "heldout_sampled", "strict", "unseen", "trained"}
    assert sum(seen) == count_answers(few) == 15
