"""What is read off answers without a judge."""

import pytest

from preftune.evaluation.health import asks_for_json, distinct_share, is_chinese, parses, refuses, repeats, units


@pytest.mark.parametrize(
    "text, found",
    [
        ("the cat sat " * 12, True),
        ("好的好的好的好的好的好的好的", True),
        ("The capital of France is Paris, and it lies on the Seine.", False),
        ("法国的首都是巴黎，它在塞纳河边。", False),
        ("no", False),
        ("", False),
    ],
)
def test_an_answer_that_goes_round_in_circles_repeats(text, found):
    assert repeats(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, I cannot.", True),
        ("As an AI language model, ...", True),
        ("很抱歉，我不能回答。", True),
        ("我无法提供这些信息。", True),
        ("Sorry is a word of apology."[6:], False),
        ("You can say that you are sorry.", False),
        ("我们可以这样做。", False),
    ],
)
def test_a_refusal_is_one_by_its_opening(text, found):
    assert refuses(text) == found


@pytest.mark.parametrize(
    "text, found", [("答案是北京。", True), ("Beijing (北京)", True), ("It is Beijing (北京).", False), ("42", False)]
)
def test_chinese_is_more_characters_than_latin_words(text, found):
    assert is_chinese(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ('{"a": 1}', True),
        ("Here you are:\n```json\n[1, 2]\n```\nAnything else?", True),
        ('Here you are: {"a": 1}', False),
        ('```json\n{"a": 1,}\n```', False),
        ("7", False),
        ("[" * 5000, False),
    ],
)
def test_json_parses_bare_or_fenced(text, found):
    assert parses(text) == found


def test_distinct_grams_and_units():
    assert units("It's 北京, no?") == ["It", "'", "s", "北", "京", ",", "no", "?"]
    assert distinct_share([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3) and distinct_share([["a"]], 2) == 1.0
    assert asks_for_json("Answer in JSON.") and not asks_for_json("jsonp")
