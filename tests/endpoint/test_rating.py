"""The question to a judge, and the number in its answer."""

from __future__ import annotations

import pytest

from preftune.endpoint.rating import TEMPLATE, rating_request, read_rating, read_template
from preftune.errors import RecipeError


def test_the_question_holds_the_conversation_and_the_answer():
    request = rating_request("a", [{"role": "user", "content": "Why?"}], "Because.")
    (message,) = request.messages
    assert "[conversation]\nWhy?\n[end" in message["content"] and "[answer]\nBecause.\n[end" in message["content"]
    assert message["role"] == "user" and request.temperature == 0.0 and request.max_tokens == 512


def test_turns_are_told_apart():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    (message,) = rating_request("a", turns, "Hello", "{prompt}|{response}").messages
    assert message["content"] == "system: Be kind.\n\nuser: Hi|Hello"


def test_a_text_with_a_place_in_it_stays_as_it_is():
    (message,) = rating_request(
        "a", [{"role": "user", "content": "{response}{x}"}], "{prompt}", "{prompt} {response}"
    ).messages
    assert message["content"] == "{response}{x} {prompt}"


@pytest.mark.parametrize(
    "reply, rating",
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[3]] would be harsh: [[ 8.5 ]]", 8.5),
        ("[[Rating: 6]]", 6.0),
        ("[[9/10]]", 9.0),
        ("Rating: 7", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("", None),
    ],
)
def test_the_last_rating_from_1_to_10_counts(reply, rating):
    found, problem = read_rating(reply)
    assert found == rating and (problem is None) == (rating is not None)


def test_a_template_of_ones_own_has_both_places(tmp_path):
    file = tmp_path / "judge.txt"
    file.write_text(TEMPLATE)
    assert read_template(file) == TEMPLATE
    file.write_text("Rate {response}")
    with pytest.raises(RecipeError, match=r"judge.txt: the judge's template has no \{prompt\} in it"):
        read_template(file)
    with pytest.raises(RecipeError, match=r"none.txt: the judge's template cannot be read \(No such file"):
        read_template(tmp_path / "none.txt")
