"""`tokenization: princeton` against the ids and counts that the SimPO reference repository gives."""

from __future__ import annotations

import copy

import pytest

from preftune.data import tokenize_examples
from preftune.data.named_templates import set_chat_template
from preftune.errors import ModelError, RecipeError
from preftune.types import Message

QUESTION, CHOSEN, REJECTED = "What is 2+2?", "2+2 equals 4.", "It is five"
BOS, EOS = 1, 2
WORDS = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"


def ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def princeton(tokenizer, example, **settings):
    (group,), _ = tokenize_examples([example], tokenizer, tokenization="princeton", **settings)
    return group.prompt_ids, *group.response_ids


@pytest.mark.parametrize("eos", ["<|eot_id|>", "<|end_of_text|>"])
def test_llama3(real_tokenizer, example, eos):
    tokenizer = copy.deepcopy(real_tokenizer("llama3"))
    tokenizer.eos_token = eos
    prompt, chosen, rejected = princeton(tokenizer, example(QUESTION, CHOSEN, REJECTED))
    appended = [] if eos == "<|eot_id|>" else [128001]
    assert prompt == ids("128000 128006 882 128007 271 3923 374 220 17 10 17 30 128009")
    assert chosen == ids("128006 78191 128007 271 17 10 17 17239 220 19 13 128009") + appended
    assert rejected == ids("128006 78191 128007 271 2181 374 4330 128009") + appended


def test_mistral_instruct(real_tokenizer, example):
    tokenizer = copy.deepcopy(real_tokenizer("mistral-v1"))
    set_chat_template(tokenizer, "mistral-simpo")
    prompt, chosen, rejected = princeton(tokenizer, example(QUESTION, CHOSEN, REJECTED))
    assert prompt == ids("1 733 16289 28793 1824 349 28705 28750 28806 28750 28804 733 28748 16289 28793")
    assert chosen == ids("28705 28750 28806 28750 21588 28705 28781 28723 28705 2")
    assert rejected == ids("661 349 3359 28705 2")


@pytest.mark.parametrize("template", [None, "zephyr"])
def test_zephyr_with_its_empty_system_text_and_two_eos(real_tokenizer, example, template):
    tokenizer = copy.deepcopy(real_tokenizer("mistral-v1"))
    set_chat_template(tokenizer, template)
    prompt, chosen, rejected = princeton(tokenizer, example(QUESTION, CHOSEN, REJECTED))
    assert prompt == ids(
        "1 523 28766 6574 28766 28767 13 2 28705 13 28789 28766 1838 28766 28767 13 3195 349 28705 28750 28806 28750 "
        "28804 2 28705 13"
    )
    assert chosen == ids("28789 28766 489 11143 28766 28767 13 28750 28806 28750 21588 28705 28781 28723 2 28705 13 2")
    assert rejected == ids("28789 28766 489 11143 28766 28767 13 1313 349 3359 2 28705 13 2")


@pytest.fixture
def cut(word_tokenizer, example):
    """Counts of prompt, chosen and rejected tokens, and the prompt, of rows of so many words (id = 100 + place)."""
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.chat_template = WORDS

    def count(prompt: int, chosen: int, rejected: int, **settings):
        def text(words: int, first: int) -> str:
            return " ".join(f"w{first - 3 + n}" for n in range(words))

        row = example(text(prompt, 100), text(chosen, 1000), text(rejected, 3000))
        parts = princeton(tokenizer, row, **settings)
        return [len(part) for part in parts], parts

    return count


SMALL = {"max_length": 20, "max_prompt_length": 10}


def test_a_pair_that_fits_is_whole(cut):
    assert cut(6, 5, 3, **SMALL)[0] == [7, 6, 4]
    assert cut(9, 9, 3, **SMALL)[0] == [10, 10, 4]  # equality fits


def test_keep_end_takes_the_prompts_last_tokens_and_loses_bos(cut):
    for settings in ({"truncation": "keep_end"}, {}):
        lengths, (prompt, _, _) = cut(15, 5, 3, **SMALL, **settings)
        assert lengths == [10, 6, 4]
        assert prompt == list(range(105, 115))


def test_keep_start_takes_the_prompts_first_tokens(cut):
    lengths, (prompt, _, _) = cut(15, 5, 3, **SMALL, truncation="keep_start")
    assert lengths == [10, 6, 4]
    assert prompt == [BOS, *range(100, 109)]


def test_the_longer_response_cuts_both_and_eos_is_lost(cut):
    lengths, (_, chosen, rejected) = cut(4, 30, 12, **SMALL)
    assert lengths == [5, 10, 10]
    assert EOS not in chosen + rejected
    assert cut(100, 2000, 300, max_length=2048, max_prompt_length=1800)[0] == [101, 248, 248]


def test_preftunes_own_rule_leaves_the_shorter_response_alone(word_tokenizer, example):
    row = example(" ".join(f"w{n}" for n in range(100)), " ".join(f"w{n}" for n in range(2000)), "w1 " * 300)
    (group,), _ = tokenize_examples([row], word_tokenizer, max_length=2048, max_prompt_length=1800)
    assert len(group.prompt_ids) == 101
    assert [len(ids) for ids in group.response_ids] == [1947, 301]


def test_responses_that_merge_over_the_boundary_share_the_shorter_prompt(real_tokenizer, example):
    """A prompt that ends with a letter grows into the response; then its last token is scored."""
    tokenizer = copy.deepcopy(real_tokenizer("gpt2"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompt, chosen, rejected = princeton(tokenizer, example("un", "believable", ". No"))
    texts = [tokenizer.decode(prompt + response) for response in (chosen, rejected)]
    assert texts == ["<|endoftext|>unbelievable<|endoftext|>", "<|endoftext|>un. No<|endoftext|>"]


def test_a_system_text_of_the_row_is_kept(real_tokenizer, example):
    tokenizer = real_tokenizer("mistral-v1")
    messages = (Message("system", "Be brief."), Message("user", QUESTION))
    prompt, _, _ = princeton(tokenizer, example(messages, CHOSEN, REJECTED))
    assert "Be brief." in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 10, "max_prompt_length": 10}, "'max_prompt_length' 10 leaves nothing of 'max_length' 10"),
        ({"max_length": 20, "max_prompt_length": 5, "truncation": "drop"}, "'truncation: drop' is not in 'tokenizat"),
    ],
)
def test_settings_that_the_repository_does_not_have_are_refused(cut, settings, message):
    with pytest.raises(RecipeError, match=message):
        cut(3, 2, 1, **settings)


def test_a_tokenizer_without_template_is_refused(word_tokenizer, example):
    with pytest.raises(ModelError, match="needs a chat template"):
        princeton(word_tokenizer, example("w1", "w2", "w3"))
