"""The demo's model: a small Llama with random weights, made to fit a tokenizer.

In: a tokenizer, sizes and a seed. Out: a `LlamaForCausalLM` in float32 with the tokenizer's special ids in its
configuration and generation configuration. The same seed gives the same weights.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preftune.demo.settings import MODEL, ModelSettings


def build_config(tokenizer: PreTrainedTokenizerFast, sizes: ModelSettings = MODEL) -> LlamaConfig:
    """The configuration for this tokenizer; the vocabulary is the tokenizer's own length."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_attention_heads,
        max_position_embeddings=sizes.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, sizes: ModelSettings = MODEL) -> LlamaForCausalLM:
    """A model with random float32 weights that depend on `seed` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(build_config(tokenizer, sizes))
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
