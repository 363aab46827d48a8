"""Chat templates by name: their text, letter for letter, and the ids that a generator gets."""

from __future__ import annotations

import copy

import pytest

from preftune.data import generation_prompt_ids, read_chat_format, tokenize_examples
from preftune.data.named_templates import (
    TEMPLATE_NAMES,
    TEMPLATES,
    add_markers,
    missing_markers,
    set_chat_template,
    template_text,
)
from preftune.errors import ModelError, RecipeError
from preftune.types import Message

ALONE = (Message("user", "q 🙂"),)
TURNS = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
SYSTEM = (Message("system", "Be brief."), *ALONE)
EMPTY_SYSTEM = (Message("system", ""), *ALONE)
# prompt of ALONE, answer "good", what TURNS put between q and r, what SYSTEM puts before q, what EMPTY_SYSTEM does
LLAMA3 = (
    "<s><|start_header_id|>user<|end_header_id|>\n\nq 🙂<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "good<|eot_id|>",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "<s><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
)
CHATML = (
    "<|im_start|>user\nq 🙂<|im_end|>\n<|im_start|>assistant\n",
    "good<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\n",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
    "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n",
)
GEMMA = (
    "<s><start_of_turn>user\nq 🙂<end_of_turn>\n<start_of_turn>model\n",
    "good<end_of_turn>",
    "<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\n",
    "<s><start_of_turn>user\nBe brief.\n\n",
    "<s><start_of_turn>user\n",
)
GOLDEN = {
    "llama3": LLAMA3,
    "llama3.1": LLAMA3,
    "llama3.2": LLAMA3,
    "llama3.3": LLAMA3,
    "chatml": CHATML,
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "mistral": (
        "<s>[INST] q 🙂 [/INST]",
        " good</s>",
        " [/INST] a</s>[INST] ",
        "<s>[INST] Be brief.\n\n",
        "<s>[INST] ",
    ),
    "mistral-v3": (
        "<s>[INST] q 🙂[/INST]",
        " good</s>",
        "[/INST] a</s>[INST] ",
        "<s>[INST] Be brief.\n\n",
        "<s>[INST] ",
    ),
    "mistral-simpo": (
        "[INST] q 🙂 [/INST]",
        " good </s>",
        " [/INST] a </s>[INST] ",
        "[INST] Be brief.\n\n",
        "[INST] ",
    ),
    "zephyr": (
        "<|user|>\nq 🙂</s>\n<|assistant|>\n",
        "good</s>",
        "</s>\n<|assistant|>\na</s>\n<|user|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\n",
        "<|system|>\n</s>\n<|user|>\n",
    ),
    "phi3": (
        "<|user|>\nq 🙂<|end|>\n<|assistant|>\n",
        "good<|end|>",
        "<|end|>\n<|assistant|>\na<|end|>\n<|user|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\n",
        "<|system|>\n<|end|>\n<|user|>\n",
    ),
    "plain": ("q 🙂", "good</s>", "\n\na\n\n", "Be brief.\n\n", "\n\n"),
}

SETTINGS = {"a": 'x"%}{#\n🙂\\', "b": [1, None, {"{{": True}], "c": 0.5}


@pytest.fixture
def named(byte_tokenizer):
    """A tokenizer of bytes with a named template, whose markers are tokens."""

    def build(name: str, settings=None, markers: bool = True):
        tokenizer = byte_tokenizer(None)
        if markers:
            add_markers(tokenizer, name)
        set_chat_template(tokenizer, name, settings)
        return tokenizer

    return build


def texts(tokenizer, example, prompt=ALONE, *answers: str):
    group = tokenize_examples([example(prompt, *(answers or ("good",)))], tokenizer)[0][0]
    return tokenizer.decode(group.prompt_ids), [tokenizer.decode(ids) for ids in group.response_ids]


def test_every_name_has_a_golden_text():
    assert set(GOLDEN) == set(TEMPLATE_NAMES)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_named_template_writes_its_golden_text(named, example, name):
    tokenizer = named(name)
    prompt, answer, between, system, empty_system = GOLDEN[name]
    assert texts(tokenizer, example) == (prompt, [answer])
    assert f"q{between}r" in texts(tokenizer, example, TURNS)[0]
    assert texts(tokenizer, example, SYSTEM)[0] == system + prompt[prompt.index("q 🙂") :]
    assert texts(tokenizer, example, EMPTY_SYSTEM)[0] == empty_system + prompt[prompt.index("q 🙂") :]


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@pytest.mark.parametrize("messages", [ALONE, TURNS, SYSTEM, EMPTY_SYSTEM])
@pytest.mark.parametrize("markers", [True, False])
def test_training_and_generation_have_the_same_prompt_one_bos_and_one_end(named, example, name, messages, markers):
    tokenizer = named(name, markers=markers)
    groups, _ = tokenize_examples([example(messages, "good", "bad")], tokenizer)
    chat = read_chat_format(tokenizer)
    assert groups[0].prompt_ids == generation_prompt_ids(tokenizer, messages)
    assert groups[0].prompt_ids.count(256) == (chat.bos_id is not None)
    for ids in groups[0].response_ids:
        assert (ids[-1], ids.count(chat.end_id)) == (chat.end_id, 1)


def test_a_template_survives_saving(named, tmp_path):
    tokenizer = named("qwen3", {"enable_thinking": False})
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert generation_prompt_ids(again, ALONE) == generation_prompt_ids(tokenizer, ALONE)


def test_qwen3_thinks_unless_told_not_to(named, example):
    thought = "<think>\nhm\n</think>\n\ngood"
    earlier = (Message("user", "q"), Message("assistant", thought), Message("user", "r"))
    prompt, responses = texts(named("qwen3"), example, earlier, thought, "good")
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n" + (
        "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    )
    assert responses == [thought + "<|im_end|>", "good<|im_end|>"]
    prompt, responses = texts(named("qwen3", {"enable_thinking": False}), example)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert responses == ["good<|im_end|>"]


def test_answers_without_thoughts_in_thinking_mode_are_warned_of(named, example, caplog):
    for settings, answer in (({"enable_thinking": False}, "good"), ({}, "<think>\nhm\n</think>\n\ngood")):
        tokenize_examples([example("q", answer)], named("qwen3", settings))
    assert caplog.text == ""
    tokenize_examples([example("q", "good")], named("qwen3"))
    assert "Set chat_template_kwargs: {enable_thinking: false}" in caplog.text


def test_llama31_names_dates_only_when_one_is_given(named, example):
    tokenizer = named("llama3.1", {"date_string": "26 Jul 2024"})
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    start = f"<s><|start_header_id|>system<|end_header_id|>\n\n{dates}"
    assert texts(tokenizer, example)[0].startswith(f"{start}<|eot_id|><|start_header_id|>user")
    assert texts(tokenizer, example, SYSTEM)[0].startswith(f"{start}Be brief.<|eot_id|><|start_header_id|>user")


def test_settings_are_written_into_the_template_and_replaced_by_later_ones(named):
    tokenizer = named("plain")
    question = [{"role": "user", "content": "q"}]
    set_chat_template(tokenizer, "{{ messages[0].content }}{{ a }}{{ b }}{{ c }}", SETTINGS)
    written = f"q{SETTINGS['a']}{SETTINGS['b']}{SETTINGS['c']}"
    assert tokenizer.apply_chat_template(question, tokenize=False) == written
    set_chat_template(tokenizer, None, {"c": False})
    assert tokenizer.apply_chat_template(question, tokenize=False) == "qFalse"
    assert tokenizer.chat_template.count("{% set") == 1


@pytest.mark.parametrize(
    ("template", "settings", "error", "message"),
    [
        ("lama3", None, RecipeError, "'chat_template' is 'lama3'; expected Jinja text, a file, or llama3, llama3.1"),
        ("chatml", {"not a name": 1}, RecipeError, "has the key 'not a name'; expected a name"),
        ("chatml", {"x": object()}, RecipeError, "'chat_template_kwargs.x' is a object; expected"),
        ("plain", {"x": 1}, ModelError, "needs a chat template, and the tokenizer has none"),
    ],
)
def test_what_cannot_be_set_is_refused(byte_tokenizer, template, settings, error, message):
    with pytest.raises(error, match=message):
        set_chat_template(byte_tokenizer(None), template, settings)


def test_none_leaves_the_tokenizer_as_it_is(byte_tokenizer, chatml):
    tokenizer = byte_tokenizer(chatml)
    set_chat_template(tokenizer)
    assert tokenizer.chat_template == chatml
    assert template_text("plain") is None


def test_markers_of_a_base_model_are_text_until_they_are_added(real_tokenizer, example):
    tokenizer = copy.deepcopy(real_tokenizer("gpt2"))
    set_chat_template(tokenizer, "chatml")
    assert missing_markers(tokenizer, "chatml") == ["<|im_start|>", "<|im_end|>"]
    as_text = tokenize_examples([example("q", "good")], tokenizer)[0][0]
    assert max(as_text.prompt_ids + as_text.response_ids[0]) < 50257
    assert texts(tokenizer, example) == (CHATML[0], ["good<|im_end|><|endoftext|>"])
    assert add_markers(tokenizer, "chatml") == (50257, 50258)
    assert missing_markers(tokenizer, "chatml") == []
    assert add_markers(tokenizer, "chatml") == ()
    as_tokens = tokenize_examples([example("q", "good")], tokenizer)[0][0]
    assert (as_tokens.prompt_ids[0], as_tokens.response_ids[0][-1], len(tokenizer)) == (50257, 50258, 50259)


def test_models_of_a_family_have_its_markers(real_tokenizer):
    families = {"llama3": "llama3", "qwen2.5": "qwen3", "mistral-v3": "mistral-v3", "phi3": "phi3"}
    assert all(missing_markers(real_tokenizer(name), template) == [] for name, template in families.items())
    assert all(missing_markers(real_tokenizer("gpt2"), name) == list(TEMPLATES[name].markers) for name in TEMPLATES)


@pytest.mark.parametrize(
    ("name", "template", "published"),
    [
        ("llama3", "llama3", "simpo_llama3"),
        ("mistral-v1", "zephyr", "simpo_mistral-base"),
        ("qwen2.5", "chatml", "chatml_minimal"),
        ("gpt2", "gemma", "gemma2_official"),
    ],
)
def test_a_named_template_gives_the_ids_of_the_published_one(
    real_tokenizer, data_folder, example, name, template, published
):
    ours, theirs = (copy.deepcopy(real_tokenizer(name)) for _ in range(2))
    set_chat_template(ours, template)
    set_chat_template(theirs, (data_folder / "chat_templates" / f"{published}.jinja").read_text())
    rows = [example(messages, "2+2 equals 4.", "no") for messages in (ALONE, TURNS, SYSTEM, EMPTY_SYSTEM)]
    assert tokenize_examples(rows, ours)[0] == tokenize_examples(rows, theirs)[0]


def test_qwens_own_template_differs_from_ours_only_in_its_default_system_text(real_tokenizer, example):
    ours, theirs = (copy.deepcopy(real_tokenizer("qwen2.5")) for _ in range(2))
    set_chat_template(ours, "qwen2.5")
    row = example(SYSTEM, "2+2 equals 4.", "no")
    assert tokenize_examples([row], ours)[0] == tokenize_examples([row], theirs)[0]
    assert "You are Qwen" not in texts(ours, example)[0]
