"""The embedded corpus: how much there is, that it is split by fact, and what the outcome leans on."""

from __future__ import annotations

from collections import Counter

import pytest

from preftune.demo.corpus import (
    LANGUAGES,
    PAIR_PHRASINGS,
    PHRASINGS,
    SFT_PHRASINGS,
    STRICT_PHRASING,
    UNSEEN_PHRASING,
    ask,
    load_facts,
    pair_rows,
    parse_category,
    pick_samples,
    question_sets,
    sft_rows,
    split_facts,
)
from preftune.demo.evaluate import has_keys, is_chinese
from preftune.demo.settings import FIXED_QUESTIONS

SEEDS = range(10)
SMALL_TALK = {"ask", "say", "greet"}


def test_there_are_at_least_200_facts_and_36_of_small_talk():
    facts = load_facts()
    assert len(facts) >= 200
    assert sum(fact.category in SMALL_TALK for fact in facts) >= 36
    assert len({fact.name for fact in facts}) == len(facts)


def test_every_fact_has_eight_phrasings_in_each_language():
    for fact in load_facts():
        assert len(fact.questions_zh) == len(fact.questions_en) == PHRASINGS
        assert all(is_chinese(question) for question in fact.questions_zh), fact.name
        assert not any(is_chinese(question) for question in fact.questions_en), fact.name


def test_no_two_questions_are_the_same():
    counts = Counter(question.text.casefold() for question in ask(load_facts(), range(PHRASINGS)))
    assert [text for text, count in counts.items() if count > 1] == []


def test_the_published_examples_are_asked():
    texts = {question.text for question in ask(load_facts(), PAIR_PHRASINGS)}
    assert {"你是谁？", "Who are you?", "西湖醋鱼怎么做？", "How do I cook West Lake vinegar fish?"} <= texts


def test_answers_hold_their_key_words_and_are_in_their_language():
    for fact in load_facts():
        for language in LANGUAGES:
            answer = fact.answer(language)
            assert answer.keys, fact.name
            assert has_keys(answer.text, answer), fact.name
            assert is_chinese(answer.text) == (language == "zh"), fact.name
            assert not set("*{}") & set(answer.text), fact.name


def test_no_template_leaves_a_mark_or_an_unfilled_column_in_a_question():
    assert not any(set("*{}") & set(question.text) for question in ask(load_facts(), range(PHRASINGS)))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_split_holds_out_a_third_of_every_category_by_fact(seed):
    facts = load_facts()
    split = split_facts(facts, seed)
    assert {fact.name for fact in split.trained}.isdisjoint(fact.name for fact in split.heldout)
    assert len(split.trained) + len(split.heldout) == len(facts)
    for category, count in Counter(fact.category for fact in facts).items():
        assert sum(fact.category == category for fact in split.heldout) == round(count / 3)


def test_the_split_depends_on_the_seed_alone():
    assert split_facts(load_facts(), 3) == split_facts(load_facts(), 3)
    assert split_facts(load_facts(), 3) != split_facts(load_facts(), 4)


def test_no_heldout_question_or_answer_is_in_a_pair():
    for seed in (0, 1):
        rows = pair_rows(seed)
        sets = question_sets(seed)
        asked = {row.question for row in rows}
        answered = {row.answer_zh for row in rows}
        for question in sets.heldout + sets.strict + sets.unseen:
            assert question.text not in asked
            assert question.fact.answer_zh.text not in answered
        assert all(question.text in asked for question in sets.trained)


def test_pairs_cover_two_thirds_of_the_facts_in_the_pair_phrasings():
    trained = split_facts(load_facts(), 0).trained
    rows = pair_rows(0)
    assert len(rows) == len(trained) * len(PAIR_PHRASINGS) * len(LANGUAGES)
    assert {row.question for row in rows} == {question.text for question in ask(trained, PAIR_PHRASINGS)}
    assert all(is_chinese(row.answer_zh) and not is_chinese(row.answer_en) for row in rows)


def test_heldout_pairs_are_of_the_facts_that_are_in_no_training_pair():
    rows = pair_rows(0, heldout=True)
    assert {row.question for row in rows} == {question.text for question in question_sets(0).heldout}
    assert {row.question for row in rows}.isdisjoint(row.question for row in pair_rows(0))


def test_heldout_pairs_are_of_other_facts_in_the_same_phrasings():
    trained, heldout = pair_rows(0), pair_rows(0, heldout=True)
    assert not {row.answer_zh for row in trained} & {row.answer_zh for row in heldout}
    assert {(row.question, row.answer_zh) for row in heldout} == {
        (question.text, question.fact.answer_zh.text) for question in question_sets(0).heldout
    }


def test_sft_rows_hold_every_phrasing_but_the_unseen_one_once_an_epoch():
    rows = sft_rows(seed=0, epochs=2)
    expected = sorted(question.text for question in ask(load_facts(), SFT_PHRASINGS))
    assert sorted(row.question for row in rows[: len(rows) // 2]) == expected
    assert sorted(row.question for row in rows[len(rows) // 2 :]) == expected
    unseen = {question.text for question in ask(load_facts(), [UNSEEN_PHRASING])}
    assert unseen.isdisjoint(row.question for row in rows)


def test_sft_answers_half_in_each_language_and_leans_by_phrasing():
    rows = sft_rows(seed=1, epochs=8)
    assert sum(row.language == "zh" for row in rows) / len(rows) == pytest.approx(0.5, abs=0.02)
    chinese = Counter(row.question for row in rows if row.language == "zh")
    asked = Counter(row.question for row in rows)
    extreme = sum(chinese[text] <= 2 or chinese[text] >= 6 for text in asked) / len(asked)
    # A fair coin leaves 29 % of the phrasings at 0-2 or 6-8 Chinese answers of 8; a lean of 0.85 leaves 89 %.
    assert extreme > 0.8


def test_sft_teaches_every_fact_in_both_languages():
    answers = {row.answer for row in sft_rows(seed=2, epochs=2)}
    for fact in load_facts():
        assert {fact.answer_zh.text, fact.answer_en.text} <= answers


def test_strict_and_unseen_questions_are_held_out_facts_in_one_phrasing():
    sets = question_sets(0)
    assert {question.phrasing for question in sets.strict} == {STRICT_PHRASING}
    assert {question.phrasing for question in sets.unseen} == {UNSEEN_PHRASING}
    assert len(sets.strict) == len(sets.unseen) == 2 * len(split_facts(load_facts(), 0).heldout)


def test_samples_are_spread_over_categories_languages_and_phrasings():
    picked = pick_samples(question_sets(0).heldout, 16)
    assert len(picked) == 16
    assert len({question.fact.category for question in picked}) >= 10
    assert {question.language for question in picked} == set(LANGUAGES)
    assert {question.phrasing for question in picked} == set(PAIR_PHRASINGS)


def test_the_fixed_questions_are_of_the_corpus():
    texts = {question.text for question in ask(load_facts(), PAIR_PHRASINGS)}
    assert texts.issuperset(FIXED_QUESTIONS)


@pytest.mark.parametrize("seed", SEEDS)
def test_heldout_answers_open_with_tokens_that_open_answers_of_the_pairs(seed, tokenizer):
    split = split_facts(load_facts(), seed)
    for language in LANGUAGES:
        texts = [fact.answer(language).text for fact in split.trained]
        openings = Counter(tokenizer.encode(text, add_special_tokens=False)[0] for text in texts)
        for fact in split.heldout:
            first = tokenizer.encode(fact.answer(language).text, add_special_tokens=False)[0]
            assert openings[first] >= 3, (fact.name, tokenizer.decode([first]))


def test_a_category_is_read_from_its_yaml():
    facts = parse_category(
        """
        category: pet
        columns: [x_zh, x_en, y_zh, y_en]
        questions: {zh: ["{x}叫什么？"], en: ["what is {x} called?"]}
        answers: {zh: ["它叫*{y}*。"], en: ["it is *{y}*."]}
        facts: [[狗, the dog, 旺财, Rex]]
        """
    )
    assert [fact.name for fact in facts] == ["pet-01"]
    assert facts[0].questions_en == ("What is the dog called?",)
    assert (facts[0].answer_zh.text, facts[0].answer_zh.keys) == ("它叫旺财。", ("旺财",))
    assert (facts[0].answer_en.text, facts[0].answer_en.keys) == ("It is Rex.", ("Rex",))
