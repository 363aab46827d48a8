"""Runs on a base model: a tokenizer without a chat template, and a model that has never seen a turn's markers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preftune import load_model, train
from preftune.data import generation_prompt_ids, read_chat_format
from preftune.demo.corpus import corpus_texts
from preftune.demo.tokenizer import train_tokenizer
from preftune.errors import ModelError
from preftune.model.load import load_tokenizer
from preftune.model.new_tokens import embed_new_tokens
from preftune.recipe import load_recipe
from preftune.train.tokenizer import check_same_prompts, load_run_tokenizer
from preftune.types import Example, Message, Origin

MARKERS = ("<|im_start|>", "<|im_end|>")
ASKED = [Message("user", "What is 1 plus 1?")]
ROWS = [
    {"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": "No."}
    for a in range(4)
    for b in (1, 2)
]


def base_tokenizer() -> PreTrainedTokenizerFast:
    """Without template and markers."""
    tokenizer = train_tokenizer(corpus_texts())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="<|end|>")


def small_model(rows: int, **settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, bos_token_id=1, eos_token_id=2, **shape, **settings))


@pytest.fixture
def base(request, tmp_path, monkeypatch):
    """A base model's folder, and the values of a short run; the working directory is empty but for the data."""
    monkeypatch.chdir(tmp_path)
    tokenizer = base_tokenizer()
    tokenizer.save_pretrained("base")
    small_model(len(tokenizer), tie_word_embeddings=getattr(request, "param", "untied") == "tied").save_pretrained(
        "base"
    )
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "model_name_or_path": "base",
        "dataset": "pairs.jsonl",
        "total_batch_size": 4,
        "max_steps": 2,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "output_dir": "run",
    }


def markers_of(tokenizer) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS]


def tables(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


@pytest.mark.parametrize("base", ["untied", "tied"], indirect=True)
def test_a_base_model_gets_chatml_and_rows_for_its_markers_that_are_trained_and_saved(base, caplog):
    caplog.set_level(logging.INFO)
    train(None, **base)
    assert "'base' has no chat template: chatml is used" in caplog.text
    before, tokenizer = AutoModelForCausalLM.from_pretrained("base"), AutoTokenizer.from_pretrained("run")
    after = AutoModelForCausalLM.from_pretrained("run")
    old = before.config.vocab_size
    assert (markers_of(tokenizer), after.config.vocab_size) == ([old, old + 1], old + 2)
    assert len(generation_prompt_ids(tokenizer, ASKED)) > 5
    assert generation_prompt_ids(tokenizer, ASKED)[:1] == [old]
    assert after.generation_config.eos_token_id == [old + 1, 2]
    for start, end in zip(tables(before), tables(after), strict=True):
        assert end.shape[0] == old + 2
        assert not torch.allclose(end[old], start.mean(dim=0), atol=1e-5)
        assert not torch.allclose(end[old + 1], end[old], atol=1e-5)


@pytest.mark.parametrize("base", ["untied", "tied"], indirect=True)
def test_an_adapter_on_a_base_model_brings_the_rows_of_its_new_tokens(base, caplog):
    caplog.set_level(logging.INFO)
    train(None, **base, use_peft=True, lora_r=2)
    assert "model.embed_tokens" in caplog.text
    before, after = AutoModelForCausalLM.from_pretrained("base"), load_model("run")
    tokenizer = load_tokenizer("run")
    old = before.config.vocab_size
    assert markers_of(tokenizer) == [old, old + 1]
    start, end = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert end.shape[0] == old + 2
    assert not torch.allclose(end[old], start.mean(dim=0), atol=1e-5)
    logits = after(torch.tensor([generation_prompt_ids(tokenizer, ASKED)])).logits
    assert logits.shape[-1] == old + 2


@pytest.mark.parametrize("base", ["untied", "tied"], indirect=True)
def test_a_second_run_goes_on_from_an_adapter_or_from_the_trained_model(base):
    train(None, **base, use_peft=True, lora_r=2)
    train(None, **{**base, "output_dir": "more"}, adapter_name_or_path="run")
    assert load_model("more").get_input_embeddings().weight.shape[0] == len(load_tokenizer("run"))
    train(None, **{**base, "output_dir": "whole"})
    train(None, **{**base, "model_name_or_path": "whole", "output_dir": "next"})
    assert AutoModelForCausalLM.from_pretrained("next").config.vocab_size == len(load_tokenizer("whole"))


def test_a_resumed_run_has_the_rows_that_were_trained(base):
    train(None, **{**base, "max_steps": 2})
    train(None, **{**base, "save_strategy": "steps", "save_steps": 1, "output_dir": "other"})
    train(
        None, **{**base, "save_strategy": "steps", "output_dir": "other"}, resume_from_checkpoint="other/checkpoint-1"
    )
    one, two = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("run", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_reference_of_its_own_gets_the_same_rows(base):
    train(None, **base, objective="dpo", reference_model_name_or_path="base")
    named = json.loads(Path("run/summary.json").read_text())["metrics"]["rewards/margins"]
    train(None, **{**base, "output_dir": "other"}, objective="dpo")
    assert json.loads(Path("other/summary.json").read_text())["metrics"]["rewards/margins"] == pytest.approx(named)


def test_a_reward_model_of_a_base_model_embeds_the_markers(base):
    train(None, **base, objective="reward")
    assert json.loads(Path("run/config.json").read_text())["vocab_size"] >= len(base_tokenizer()) + 2


@pytest.mark.parametrize(
    ("values", "vocabulary"),
    [({"chat_template": "plain"}, 0), ({"add_template_tokens": False}, 0), ({"chat_template": "llama3"}, 3)],
    ids=str,
)
def test_another_choice_is_named(base, values, vocabulary):
    train(None, **base, **values)
    after, tokenizer = AutoModelForCausalLM.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    assert after.config.vocab_size == len(tokenizer) == len(base_tokenizer()) + vocabulary
    assert bool(tokenizer.chat_template) == (values != {"chat_template": "plain"})
    assert read_chat_format(tokenizer).end_id in (after.generation_config.eos_token_id, *MARKERS) or vocabulary


def test_rows_that_a_model_holds_in_reserve_are_used_first():
    model = small_model(rows=12)
    embed_new_tokens(model, (10, 11))
    assert model.get_input_embeddings().weight.shape[0] == 12
    for table in tables(model):
        assert torch.allclose(table[10], table[:10].mean(dim=0))


def test_a_tokenizer_of_another_model_is_refused_before_rows_are_added():
    with pytest.raises(
        ModelError, match="has 20 tokens without those that its chat template adds, but the model embeds 12"
    ):
        embed_new_tokens(small_model(rows=12), (20, 21))


def test_new_tokens_that_are_not_trained_are_warned_of(base, caplog):
    train(None, **base, freeze=["embeddings"])
    assert "'freeze' covers the embeddings" in caplog.text
    train(None, **{**base, "output_dir": "plain"}, use_peft=True, lora_r=2, chat_template="plain")
    train(None, **{**base, "output_dir": "more"}, adapter_name_or_path="plain")
    assert "the adapter does not train the embeddings" in caplog.text


def test_the_reference_repositorys_ids_need_a_named_template(base):
    with pytest.raises(ModelError, match="needs a chat template, and the tokenizer has none"):
        train(None, **base, tokenization="princeton")


# --- what is trained on is what is sampled from


def test_a_run_stops_where_the_saved_tokenizer_gives_another_prompt(base, monkeypatch):
    tokenizer, _ = load_run_tokenizer(load_recipe(None, base))
    rows = [Example((Message("user", "q"),), ("a", "b"), Origin("pairs.jsonl", "train", 1))]
    check_same_prompts(rows, tokenizer)
    saved = type(tokenizer).save_pretrained

    def with_another_template(self, folder, **settings):
        template, self.chat_template = self.chat_template, "{% for m in messages %}{{ m.content }}{% endfor %}"
        saved(self, folder, **settings)
        self.chat_template = template

    monkeypatch.setattr(type(tokenizer), "save_pretrained", with_another_template)
    with pytest.raises(
        ModelError, match=r"pairs.jsonl\[train\] row 1: the prompt that is trained on is not the one that"
    ):
        train(None, **base)
    assert not Path("run").exists()


def test_a_system_text_that_the_template_adds_is_said(base, caplog):
    caplog.set_level(logging.INFO)
    turns = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    rows = [Example((Message("user", "q"),), ("a", "b"), Origin("pairs.jsonl", "train", 1))]
    for opening in ("", "<|im_start|>system You are a helpful assistant.<|im_end|>"):
        assert "text of its own" not in caplog.text
        check_same_prompts(rows, load_run_tokenizer(load_recipe(None, {**base, "chat_template": opening + turns}))[0])
    assert 'before the first question: "<|im_start|>system You are a helpful assistant.' in caplog.text


def test_the_saved_template_has_no_clock(base):
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    train(None, **base, chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained("run")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert text == "26 Jul 2024q<|end|>"
