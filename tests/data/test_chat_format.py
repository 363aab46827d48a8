"""The rules of rendering, on a tokenizer of bytes whose ids can be read off the text."""

from __future__ import annotations

import datetime
import logging

import pytest

from preftune.data import generation_prompt_ids, read_chat_format, tokenize_examples
from preftune.errors import DataError, ModelError
from preftune.types import Message

BOS, EOS, TURN, END = 256, 257, 258, 259  # <s> </s> <|im_start|> <|im_end|>

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}{% endfor %}"
)
DEAF_TO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (  # cuts <think> from answers and puts an empty one in front of the last
    "{% for m in messages %}{% set content = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def written(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encoded(tokenizer, *examples):
    """Prompt text and response texts of the first example, as they come back from the ids."""
    group = tokenize_examples(examples, tokenizer)[0][0]
    return written(tokenizer, group.prompt_ids), [written(tokenizer, ids) for ids in group.response_ids]


def test_the_answers_header_belongs_to_the_prompt_and_text_after_the_end_is_cut(byte_tokenizer, example, chatml):
    prompt, responses = encoded(byte_tokenizer(chatml, bos=False), example("q", "good", "bad"))
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert responses == ["good<|im_end|>", "bad<|im_end|>"]


@pytest.mark.parametrize("template", [None, "chatml", "chatml with BOS"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_starts_with_one_bos_when_template_or_tokenizer_puts_it_there(
    byte_tokenizer, example, chatml, template, adds_bos
):
    text = {None: None, "chatml": chatml, "chatml with BOS": "{{ bos_token }}" + chatml}[template]
    tokenizer = byte_tokenizer(text, adds_bos=adds_bos)
    groups, report = tokenize_examples([example("q", "good", "bad")], tokenizer)
    expected = adds_bos or template == "chatml with BOS"
    assert groups[0].prompt_ids.count(BOS) == expected
    assert (groups[0].prompt_ids[0] == BOS) == expected
    assert all(BOS not in ids for ids in groups[0].response_ids)
    assert report.bos.startswith("one <s> (id 256)" if expected else "none: neither the template nor the tokenizer")


def test_a_bos_that_is_already_in_the_text_is_not_doubled(byte_tokenizer, example):
    prompt, _ = encoded(byte_tokenizer(None, adds_bos=True), example("<s><s>q", "good"))
    assert prompt == "<s>q"


def test_a_tokenizer_without_bos_gets_none(byte_tokenizer, example, chatml):
    groups, report = tokenize_examples([example("q", "good")], byte_tokenizer(chatml, bos=False))
    assert groups[0].prompt_ids[0] == TURN
    assert report.bos == "none: this tokenizer has no BOS"


def test_generation_gets_the_prompt_ids_of_training(byte_tokenizer, example, chatml):
    tokenizer = byte_tokenizer("{{ bos_token }}" + chatml)
    conversation = (Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
    groups, _ = tokenize_examples([example(conversation, "good", "bad")], tokenizer)
    assert generation_prompt_ids(tokenizer, conversation) == groups[0].prompt_ids


@pytest.mark.parametrize("pad", ["</s>", "<|im_end|>", None])
def test_the_pad_token_does_not_matter(byte_tokenizer, example, chatml, pad):
    group = tokenize_examples([example("q", "good", "bad")], byte_tokenizer(chatml, pad_token=pad))[0][0]
    assert [ids[-1] for ids in group.response_ids] == [END, END]
    assert [ids.count(END) for ids in group.response_ids] == [1, 1]


@pytest.mark.parametrize("answer", ["good<|im_end|>", "good</s>", "good<|im_end|>\n</s> "])
def test_an_end_token_left_in_the_data_does_not_stand_twice(byte_tokenizer, example, chatml, answer):
    assert encoded(byte_tokenizer(chatml), example("q", answer))[1] == ["good<|im_end|>"]


def test_an_answer_of_special_tokens_is_refused(byte_tokenizer, example, chatml):
    with pytest.raises(DataError, match=r"pairs.jsonl\[train\] row 3: the answer is empty but for special tokens"):
        encoded(byte_tokenizer(chatml), example("q", "</s>", row=3))


@pytest.mark.parametrize(
    ("answer_turn", "expected"),
    [
        ("{{ m['content'] }}", "good</s>"),
        ("{{ m['content'] + '\n\n' }}", "good</s>"),
        ("{{ m['content'] + '\n### End\n' }}", "good\n### End</s>"),
        ("{{ ' ' + m['content'] + ' ' + eos_token }}", " good </s>"),
        ("{{ m['content'] + '<|im_end|>' + eos_token }}", "good<|im_end|>"),
    ],
)
def test_a_response_ends_with_one_end_token_whatever_the_template_writes(
    byte_tokenizer, example, answer_turn, expected
):
    template = "{% for m in messages %}{% if m['role'] == 'assistant' %}" + answer_turn + "{% else %}"
    template += "{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}"
    assert encoded(byte_tokenizer(template), example("q", "good")) == ("[q]", [expected])


@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\ngood", "good"])
def test_an_answer_that_the_template_alters_is_kept_as_given(byte_tokenizer, example, answer):
    prompt, responses = encoded(byte_tokenizer(QWEN3), example("q", answer))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert responses == [answer + "<|im_end|>"]


def test_a_template_that_trims_answers_is_followed(byte_tokenizer, example, chatml):
    template = chatml.replace("m['content']", "m['content'] | trim")
    assert encoded(byte_tokenizer(template), example("q", " good\n"))[1] == ["good<|im_end|>"]


@pytest.mark.parametrize("template", [NO_SYSTEM, DEAF_TO_SYSTEM])
def test_a_system_text_without_a_role_goes_before_the_question(byte_tokenizer, example, template, caplog):
    conversation = (Message("system", "Be brief."), Message("user", "q"))
    with caplog.at_level(logging.INFO, logger="preftune"):
        prompt, _ = encoded(byte_tokenizer(template), example(conversation, "good"))
    assert prompt == "[user]Be brief.\n\nq<|im_end|>"
    assert len(caplog.records) == 1
    assert "1 system texts" in caplog.text


def test_a_template_that_refuses_a_conversation_names_the_row_and_its_reason(byte_tokenizer, example, chatml):
    template = "{% if messages | length == 2 and messages[1]['role'] == 'user' %}"
    template += "{{ raise_exception('Roles must\nalternate.') }}{% endif %}"
    twice = (Message("user", "q"), Message("user", "r"))
    with pytest.raises(DataError) as caught:
        encoded(byte_tokenizer(template + chatml), example(twice, "good", row=7))
    assert str(caught.value) == (
        "pairs.jsonl[train] row 7: the chat template refuses this conversation of user, user (Roles must alternate). "
        "Change the order of its roles, or give another chat template."
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "fails on a plain question and answer"),
        ("{{ nothing.at.all }}", "fails on a plain question and answer"),
        ("{{ messages[0]['content'] }}", "does not write what the assistant says"),
    ],
)
def test_a_broken_template_is_the_models_fault(byte_tokenizer, template, message):
    with pytest.raises(ModelError, match=message):
        read_chat_format(byte_tokenizer(template))


def test_a_tokenizer_that_cannot_end_a_response_is_refused(byte_tokenizer):
    with pytest.raises(ModelError, match="no EOS token and its template ends no turn"):
        read_chat_format(byte_tokenizer(None, eos=False))


@pytest.mark.parametrize("guard", ["{% if strftime_now is defined %}", "{% if true %}"])
def test_no_date_of_today_comes_into_a_prompt(byte_tokenizer, example, chatml, guard):
    dated = guard + "{{ strftime_now('%Y-%m-%d') }}{% else %}{{ '26 Jul 2024' }}{% endif %}" + chatml
    prompt, _ = encoded(byte_tokenizer(dated), example("q", "good"))
    assert str(datetime.date.today().year) not in prompt
    assert prompt.startswith("26 Jul 2024<|im_start|>")


def test_without_a_template_texts_are_joined_plainly_and_eos_ends_the_answer(byte_tokenizer, example):
    conversation = (Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "r:"))
    tokenizer = byte_tokenizer(None)
    assert encoded(tokenizer, example("q", "good", "bad")) == ("q", ["good</s>", "bad</s>"])
    assert encoded(tokenizer, example(conversation, " good")) == ("s\n\nq\n\na\n\nr:", [" good</s>"])


def test_a_tokenizer_that_changes_texts_by_itself_is_asked_itself(byte_tokenizer, example, chatml):
    plain = byte_tokenizer(chatml)

    class Lower(type(plain)):
        def _encode_plus(self, text, *args, **kwargs):
            low = text.lower() if isinstance(text, str) else [one.lower() for one in text]
            return super()._encode_plus(low, *args, **kwargs)

    lower = Lower(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>", chat_template=chatml)
    assert read_chat_format(plain).backend is not None
    assert encoded(lower, example("Q", "GOOD"))[1] == ["good<|im_end|>"]


@pytest.mark.parametrize("setting", [{"truncation": True, "max_length": 2}, {"padding": True}])
def test_cutting_and_padding_left_on_a_tokenizer_do_not_matter(byte_tokenizer, example, chatml, setting):
    tokenizer = byte_tokenizer(chatml, pad_token="</s>")
    chat = read_chat_format(tokenizer)
    prompts = chat.prompt_ids([[Message("user", "q")], [Message("user", "longer")]])
    tokenizer(["a", "bcd"], **setting)
    assert chat.prompt_ids([[Message("user", "q")], [Message("user", "longer")]]) == prompts
