"""The demo's tokenizer, chat template and model."""

from __future__ import annotations

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.demo.corpus import corpus_texts, load_facts
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer

QUESTION = [{"role": "user", "content": "你是谁？"}]
TINY = ModelSettings(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def ids_of(tokenizer, messages, **options):
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "text", ["西湖醋鱼怎么做？", "How do I cook it?", "7天 and 88 keys", " spaces  kept ", "émoji 🐟 龘"]
)
def test_text_comes_back_from_its_ids(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_no_token_holds_two_chinese_characters(tokenizer):
    tokens = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    assert [token for token in tokens if sum("\u4e00" <= letter <= "\u9fff" for letter in token) > 1] == []


def test_the_template_writes_the_documented_turns(tokenizer):
    messages = [*QUESTION, {"role": "assistant", "content": "我是小桥。"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s><|user|>你是谁？<|end|><|assistant|>我是小桥。<|end|>"


def test_a_system_message_is_a_turn_of_its_own(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "system", "content": "short"}, *QUESTION], tokenize=False)
    assert text == "<s><|system|>short<|end|><|user|>你是谁？<|end|>"


def test_a_role_without_a_token_is_refused(tokenizer):
    with pytest.raises(TemplateError, match="found tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_prompt_is_a_prefix_of_the_conversation_in_ids(tokenizer):
    for fact in load_facts()[::20]:
        asked = [{"role": "user", "content": fact.questions_zh[0]}]
        prompt = ids_of(tokenizer, asked, add_generation_prompt=True)
        whole = ids_of(tokenizer, [*asked, {"role": "assistant", "content": fact.answer_en.text}])
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id


def test_a_conversation_has_exactly_one_bos(tokenizer):
    prompt = ids_of(tokenizer, QUESTION, add_generation_prompt=True)
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"] == prompt


def test_special_tokens_are_distinct_and_the_pad_is_its_own(tokenizer):
    names = ["<s>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert len({tokenizer.convert_tokens_to_ids(name) for name in names}) == len(names)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<|end|>", "<|pad|>")


def test_the_same_texts_give_the_same_tokenizer():
    texts = corpus_texts()
    assert train_tokenizer(texts).get_vocab() == train_tokenizer(texts).get_vocab()


def test_model_and_tokenizer_load_with_the_auto_classes(tokenizer, tmp_path):
    model = build_model(tokenizer, seed=0, sizes=TINY)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert ids_of(again, QUESTION, add_generation_prompt=True) == ids_of(
        tokenizer, QUESTION, add_generation_prompt=True
    )
    assert again.padding_side == "left"


def test_the_model_has_3_to_10_million_parameters_and_a_tied_head(tokenizer):
    model = build_model(tokenizer, seed=0)
    assert 3e6 <= sum(weight.numel() for weight in model.parameters()) <= 10e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_weights_depend_on_the_seed_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (build_model(tokenizer, seed, TINY).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)
