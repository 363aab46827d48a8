"""Text to ids and back loses nothing at the boundary between prompt and response, whatever the text."""

from __future__ import annotations

import copy
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import tokenize_examples
from preftune.data.named_templates import set_chat_template
from preftune.types import Message

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


PIECES = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "\n", " ", "é好🙂", "assistant", "a", "<"]
)


def test_a_conversation_that_spells_out_special_tokens_comes_back_turn_by_turn(real_tokenizer, example):
    """The ids are parted at the turns' tokens and each part decoded: a spelt token that became one would part it."""
    tokenizer = copy.deepcopy(real_tokenizer("minimind"))
    set_chat_template(tokenizer, "chatml")
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    text = st.lists(PIECES | TEXT, min_size=1, max_size=6).map("".join)
    answers = text.filter(lambda answer: answer.strip() and not answer.rstrip().endswith("<|im_end|>"))

    @SETTINGS
    @given(text, text, text, answers)
    def check(question, reply, again, answer):
        messages = (Message("user", question), Message("assistant", reply), Message("user", again))
        group = tokenize_examples([example(messages, answer)], tokenizer)[0][0]
        ids = group.prompt_ids + group.response_ids[0]
        turns, turn = [], []
        for number in ids:
            if number == start:
                turn = []
            elif number == end:
                turns.append(tokenizer.decode(turn, clean_up_tokenization_spaces=False))
            else:
                turn.append(number)
        assert turns == [f"user\n{question}", f"assistant\n{reply}", f"user\n{again}", f"assistant\n{answer}"]

    check()
