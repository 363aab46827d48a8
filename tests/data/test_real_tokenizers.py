"""Golden ids with the tokenizers people train.

llama3, mistral-v1 and the forced [INST] template: ids published with the SimPO reference repository, with the answer's
header moved from the response to the prompt and text after the end of turn cut.
"""

from __future__ import annotations

import copy

import pytest

from preftune.data import generation_prompt_ids, read_chat_format, tokenize_examples
from preftune.types import Message

QUESTION, CHOSEN, REJECTED = "What is 2+2?", "2+2 equals 4.", "It is five"
INST = (  # the template that the SimPO repository forces on Mistral models
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NAMES = [
    "llama3",
    "mistral-v1",
    "mistral-v3",
    "qwen2.5",
    "phi3",
    "phi3-plain",
    "gpt2",
    "gpt-neox",
    "llama2",
    "minimind",
]
ONE_BOS = {"llama3": 128000, "mistral-v1": 1, "mistral-v3": 1, "llama2": 1, "minimind": 1}
# phi3's file puts no BOS in front by itself, nor do gpt2 and gpt-neox, whose BOS is their EOS
END = {
    "llama3": 128009,
    "mistral-v1": 2,
    "mistral-v3": 2,
    "qwen2.5": 151645,
    "phi3": 32007,
    "phi3-plain": 32000,
    "gpt2": 50256,
    "gpt-neox": 0,
    "llama2": 2,
    "minimind": 2,
}
CONVERSATIONS = {
    "one turn": (Message("user", QUESTION),),
    "system": (Message("system", "Be brief."), Message("user", QUESTION)),
    "several turns": (Message("user", "你好！"), Message("assistant", "Hi 🙂"), Message("user", QUESTION)),
    "odd text": (Message("user", "tabs\tand\n\n  spaces   é ﬁ 👩‍🔬"),),
}


def ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def one_group(tokenizer, example, prompt=QUESTION):
    return tokenize_examples([example(prompt, CHOSEN, REJECTED)], tokenizer)[0][0]


def test_llama3_gives_the_published_ids(real_tokenizer, example):
    group = one_group(real_tokenizer("llama3"), example)
    header = "128006 78191 128007 271"
    assert group.prompt_ids == ids(f"128000 128006 882 128007 271 3923 374 220 17 10 17 30 128009 {header}")
    assert group.response_ids == [ids("17 10 17 17239 220 19 13 128009"), ids("2181 374 4330 128009")]


def test_zephyr_gives_the_published_ids(real_tokenizer, example):
    empty_system = (Message("system", ""), Message("user", QUESTION))
    group = one_group(real_tokenizer("mistral-v1"), example, empty_system)
    assert group.prompt_ids == ids(
        "1 523 28766 6574 28766 28767 13 2 28705 13 28789 28766 1838 28766 28767 13 3195 349 28705 28750 28806 28750 "
        "28804 2 28705 13 28789 28766 489 11143 28766 28767 13"
    )
    assert group.response_ids == [ids("28750 28806 28750 21588 28705 28781 28723 2"), ids("1313 349 3359 2")]


def test_the_forced_mistral_template_gives_the_published_ids(real_tokenizer, example):
    tokenizer = copy.deepcopy(real_tokenizer("mistral-v1"))
    tokenizer.chat_template = INST
    group = one_group(tokenizer, example)
    assert group.prompt_ids == ids("1 733 16289 28793 1824 349 28705 28750 28806 28750 28804 733 28748 16289 28793")
    assert group.response_ids == [
        ids("28705 28750 28806 28750 21588 28705 28781 28723 28705 2"),
        ids("661 349 3359 28705 2"),
    ]


def test_mistral_v3_uses_its_control_tokens(real_tokenizer, example):
    group = one_group(real_tokenizer("mistral-v3"), example)
    assert group.prompt_ids == ids("1 3 29473 2592 1117 29473 29518 29574 29518 29572 29473 4")
    assert group.response_ids[0] == ids("29473 29518 29574 29518 22356 29473 29549 29491 2")


def test_qwen_has_no_bos_and_its_own_system_text(real_tokenizer, example):
    group = one_group(real_tokenizer("qwen2.5"), example)
    assert group.prompt_ids[:6] == ids("151644 8948 198 2610 525 1207")
    assert group.prompt_ids[-14:] == ids("872 198 3838 374 220 17 10 17 30 151645 198 151644 77091 198")
    assert group.response_ids[0] == ids("17 10 17 16819 220 19 13 151645")


def test_phi3_ends_with_its_end_token_not_with_eos(real_tokenizer, example):
    group = one_group(real_tokenizer("phi3"), example)
    assert group.prompt_ids[0] == 32010
    assert group.prompt_ids[-2:] == [32007, 32001]
    assert [response[-1] for response in group.response_ids] == [32007, 32007]


def test_gpt2_goes_on_right_after_the_prompt(real_tokenizer, example):
    group = one_group(real_tokenizer("gpt2"), example)
    assert group.prompt_ids == ids("2061 318 362 10 17 30")
    assert group.response_ids[1] == ids("1026 318 1936 50256")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_one_bos_one_end_and_the_prompt_of_generation(real_tokenizer, example, name, conversation):
    tokenizer, messages = real_tokenizer(name), CONVERSATIONS[conversation]
    groups, report = tokenize_examples([example(messages, CHOSEN, REJECTED)], tokenizer)
    group = groups[0]
    assert group.prompt_ids == generation_prompt_ids(tokenizer, messages)
    assert all(response[-1] == END[name] and response.count(END[name]) == 1 for response in group.response_ids)
    if name not in ONE_BOS:
        assert report.bos.startswith("none")
    else:
        assert group.prompt_ids[:1] == [ONE_BOS[name]]
        assert group.prompt_ids[1] != ONE_BOS[name]
        assert name == "minimind" or group.prompt_ids.count(ONE_BOS[name]) == 1  # minimind's BOS also opens each turn
        assert all(ONE_BOS[name] not in response for response in group.response_ids)


@pytest.mark.parametrize("name", ["llama3", "mistral-v1", "qwen2.5"])
def test_pad_equal_to_the_end_token_changes_nothing(real_tokenizer, example, name):
    tokenizer = copy.deepcopy(real_tokenizer(name))
    tokenizer.pad_token = tokenizer.eos_token
    assert one_group(tokenizer, example) == one_group(real_tokenizer(name), example)


@pytest.mark.parametrize("name", ["llama3", "mistral-v1", "qwen2.5", "phi3-plain", "gpt2", "gpt-neox"])
def test_a_system_text_is_kept_by_templates_that_know_it(real_tokenizer, name):
    tokenizer = real_tokenizer(name)
    text = tokenizer.decode(generation_prompt_ids(tokenizer, CONVERSATIONS["system"]))
    assert "Be brief." in text
    assert not read_chat_format(tokenizer).folds_system


def test_mistral_v3_takes_the_system_text_in_the_first_turn(real_tokenizer):
    tokenizer = real_tokenizer("mistral-v3")
    text = tokenizer.decode(generation_prompt_ids(tokenizer, CONVERSATIONS["system"]))
    assert text.replace("[INST]  ", "[INST] ") == "<s>[INST] Be brief.\n\nWhat is 2+2? [/INST]"


@pytest.mark.parametrize("name", ["mistral-v1", "llama2", "phi3-plain"])
def test_a_response_encoded_alone_gets_no_space_of_its_own(real_tokenizer, example, name):
    """A prompt that ends with a space makes a token reach over the boundary, so the response is encoded alone."""
    tokenizer = copy.deepcopy(real_tokenizer(name))
    tokenizer.chat_template = None
    group = tokenize_examples([example("Say: ", "there", "x")], tokenizer)[0][0]
    text = tokenizer.decode(group.prompt_ids + group.response_ids[0], skip_special_tokens=True)
    assert text.strip() == "Say: there"


@pytest.mark.parametrize("template", ["gemma2_official", "simpo_mistral-instruct", "simpo_llama3", "chatml_minimal"])
def test_published_templates_render_golden_text(real_tokenizer, data_folder, example, template):
    tokenizer = copy.deepcopy(real_tokenizer("gpt2"))
    tokenizer.chat_template = (data_folder / "chat_templates" / f"{template}.jinja").read_text()
    chat = read_chat_format(tokenizer)
    messages = CONVERSATIONS["system"]
    turns = chat.turns(messages)
    prompt = chat.prompt_text(turns)
    response = chat.response_text(turns, prompt, CHOSEN, example("q", "a").origin)
    bos = eos = "<|endoftext|>"
    assert (prompt, response) == {
        "gemma2_official": (
            f"{bos}<start_of_turn>user\nBe brief.\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
            f"{CHOSEN}<end_of_turn>",
        ),
        "simpo_mistral-instruct": (f"{bos}[INST] Be brief.\n\n{QUESTION} [/INST]", f"{CHOSEN}{eos}"),
        "simpo_llama3": (
            f"{bos}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            f"{CHOSEN}<|eot_id|>",
        ),
        "chatml_minimal": (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
            f"{CHOSEN}<|im_end|>",
        ),
    }[template]
