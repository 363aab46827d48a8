"""What is known of a model without weights and without a hub."""

import json

import pytest
from transformers import LlamaConfig

from preftune.model.at_hand import folder_at_hand, has_own_template, parameters_at_hand, size_in_name


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("alignment-handbook/zephyr-7b-sft-full", 7e9),
        ("google/gemma-2-9b-it", 9e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 5e8),
        ("qwen2-0_5b", 5e8),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56e9),
        ("HuggingFaceTB/SmolLM-135M", 135e6),
        ("/models/deepseek-math-7b-base/", 7e9),
        ("acme-13b/my-model", None),
        ("microsoft/phi-2", None),
        ("model-4bit", None),
        ("gpt2", None),
    ],
)
def test_a_name_says_the_size_where_it_holds_a_number_of_parameters(name, size):
    assert size_in_name(name) == size


def test_a_config_says_more_than_a_name(tmp_path):
    folder = tmp_path / "Llama-8B"
    LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    ).save_pretrained(folder)
    assert parameters_at_hand(str(folder)) == 10 * 8 * 2 + 4 * 8 * 8 + 3 * 8 * 8 + 3 * 8
    (folder / "config.json").write_text('{"model_type": "not-a-model"}')
    assert parameters_at_hand(str(folder)) == 8e9


def test_a_model_out_of_reach_is_looked_for_on_this_machine_alone(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a hub was asked"))
    assert folder_at_hand("owner/name") is None and parameters_at_hand("owner/name") is None
    assert parameters_at_hand("no/such/folder") is None and has_own_template("owner/name") is None


def test_what_is_cached_of_the_hub_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("preftune.model.at_hand.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert folder_at_hand("owner/name") == tmp_path and has_own_template("owner/name") is True


def test_a_base_models_tokenizer_has_no_template_of_its_own(tmp_path):
    assert has_own_template(str(tmp_path)) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert has_own_template(str(tmp_path)) is False
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_own_template(str(tmp_path)) is True
