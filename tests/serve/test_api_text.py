"""Text that comes token by token is the text that is decoded at once."""

from __future__ import annotations

import random

import pytest

from preftune.api.text import AnswerText, TokenTexts
from tests.data.conftest import build_byte_tokenizer, load_real_tokenizer


def pieces_of(tokenizer, ids, stops=(), before=()):
    text = AnswerText(tokenizer, stops, before)
    pieces = []
    for token in ids:
        pieces.append(text.add(token))
        if text.stopped:
            return pieces
    return [*pieces, text.close()]


@pytest.mark.parametrize("name", ["bytes", "llama2", "llama3", "qwen2.5"])
def test_the_pieces_of_any_ids_are_their_text(name):
    tokenizer = build_byte_tokenizer() if name == "bytes" else load_real_tokenizer(name)
    draw = random.Random(0)
    # a run of byte tokens that is no UTF-8 is decoded to question marks as a whole, which no stream can know before
    least = 300 if name == "llama2" else 0
    spoken = tokenizer("Zwölf Boxkämpfer jagen 你好世界 🎉👩‍👩‍👧 quer.\n", add_special_tokens=False)["input_ids"]
    for _ in range(30):
        ids = [
            *spoken[: len(spoken) if least else draw.randrange(len(spoken))],
            *(draw.randrange(least, least + 200) for _ in range(draw.randrange(30))),
        ]
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_half_a_character_waits_for_its_other_half():
    tokenizer = build_byte_tokenizer()
    ids = tokenizer("é!", add_special_tokens=False)["input_ids"]
    assert pieces_of(tokenizer, ids) == ["", "é", "!", ""]


def test_nothing_of_a_stop_string_is_handed_out():
    tokenizer, draw = build_byte_tokenizer(), random.Random(1)
    for _ in range(300):
        said = "".join(draw.choice("ab") for _ in range(draw.randrange(1, 25)))
        stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(3))]
        wanted = said[: min((place for place in map(said.find, stops) if place >= 0), default=len(said))]
        pieces = pieces_of(tokenizer, tokenizer(said, add_special_tokens=False)["input_ids"], stops)
        # the first that is complete ends the text, so a longer one that begins earlier may not
        found = "".join(pieces)
        assert said.startswith(found)
        assert not any(stop in found for stop in stops)
        assert (found == said) == (wanted == said)


def test_a_text_goes_on_from_its_prompt_with_the_space_between():
    tokenizer = load_real_tokenizer("llama2")
    before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Once upon a", "time"))
    assert "".join(pieces_of(tokenizer, ids)) == "time"
    assert "".join(pieces_of(tokenizer, ids, before=before)) == " time"


def test_tokens_have_their_space_and_parts_of_a_character_no_bytes():
    texts = TokenTexts(load_real_tokenizer("llama2"))
    tokenizer = texts.tokenizer
    assert texts(tokenizer.convert_tokens_to_ids("▁the")) == " the"
    assert texts.bytes_of(tokenizer.convert_tokens_to_ids("▁the")) == list(b" the")
    assert texts.bytes_of(tokenizer.convert_tokens_to_ids("<0xE4>")) is None
    assert texts(2) == "</s>"
