"""Text to ids and back loses nothing at the boundary between prompt and response, whatever the text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import tokenize_examples

TEXT = st.text(min_size=1, max_size=30) | st.text("\n\t ab'.é好🙂", min_size=1, max_size=12)
SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def round_trip(tokenizer, example, prompt: str, answers: tuple[str, str]):
    group = tokenize_examples([example(prompt, *answers)], tokenizer)[0][0]
    texts = [
        tokenizer.decode(group.prompt_ids + ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in group.response_ids
    ]
    return group, texts


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_a_plain_prompt_and_its_answers_come_back(real_tokenizer, example, name):
    tokenizer = real_tokenizer(name)
    eos = tokenizer.eos_token

    @SETTINGS
    @given(TEXT, TEXT.filter(str.strip))
    def check(prompt, answer):
        if name == "gpt-neox":  # its normaliser composes characters
            prompt, answer = (unicodedata.normalize("NFC", text) for text in (prompt, answer))
        group, texts = round_trip(tokenizer, example, prompt, (answer, answer + "!"))
        assert texts == [prompt + answer + eos, prompt + answer + "!" + eos]
        assert tokenizer.decode(group.prompt_ids, clean_up_tokenization_spaces=False) == prompt

    check()


def test_a_rendered_prompt_and_its_answers_come_back(real_tokenizer, example):
    tokenizer = real_tokenizer("llama3")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"

    @SETTINGS
    @given(TEXT, TEXT.filter(str.strip))
    def check(prompt, answer):
        group, texts = round_trip(tokenizer, example, prompt, (answer, answer + "!"))
        start = f"<|begin_of_text|>{header.format('user')}{prompt.strip()}<|eot_id|>{header.format('assistant')}"
        assert texts == [f"{start}{text.strip()}<|eot_id|>" for text in (answer, answer + "!")]
        assert tokenizer.decode(group.prompt_ids, clean_up_tokenization_spaces=False) == start

    check()
