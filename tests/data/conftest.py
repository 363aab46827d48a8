"""Tokenizers for the data tests: small ones built here, and real ones from the folder named by PREFTUNE_TEST_DATA.

The fixtures hand out functions, so that a test says in its own lines what it builds.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from preftune.types import Example, Message, Origin

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]  # ids 256 to 259 of the byte tokenizer


def build_byte_tokenizer(template=None, *, bos=True, adds_bos=False, eos=True, **tokens) -> PreTrainedTokenizerFast:
    """One token for each byte: id = its place in the byte-level alphabet; then the four special tokens."""
    alphabet = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    names = {"bos_token": "<s>" if bos else None, "eos_token": "</s>" if eos else None, **tokens}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


def build_word_tokenizer(words: int = 4000) -> PreTrainedTokenizerFast:
    """`w7` is id 10: one token a word after <s> (1), </s> (2); puts <s> in front and has no template."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n + 3 for n in range(words)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def build_example(prompt: str | tuple[Message, ...], *responses: str, row: int = 1) -> Example:
    """An example with a one-turn prompt, or with the messages given."""
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return Example(messages, responses, Origin("pairs.jsonl", "train", row))


def find_data_folder() -> Path:
    """The folder with real tokenizers and preference sets; the test is skipped where none is named."""
    folder = os.environ.get("PREFTUNE_TEST_DATA")
    if not folder:
        pytest.skip("real tokenizers and data: set PREFTUNE_TEST_DATA to the folder that holds them")
    return Path(folder)


@lru_cache
def load_real_tokenizer(name: str):
    """A real tokenizer by its short name, with the template it is published with (phi3 and gpt2: files alone)."""
    root = find_data_folder() / "tokenizers"
    folders = {
        "llama3": "llama3/hf",
        "llama2": "llama2/hf",
        "mistral-v1": "mistral/hf-v1-zephyr",
        "mistral-v3": "mistral/hf-v3",
        "qwen2.5": "qwen2/hf",
        "minimind": "minimind",
    }
    if name in folders:
        return AutoTokenizer.from_pretrained(root / folders[name])
    if name == "gpt2":
        backend = Tokenizer(models.BPE.from_file(str(root / "gpt2/vocab.json"), str(root / "gpt2/merges.txt")))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    if name == "gpt-neox":
        file = str(root / "gpt-neox/tokenizer.json")
        return PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    phi3 = PreTrainedTokenizerFast(
        tokenizer_file=str(root / "phi3/tokenizer.json"), bos_token="<s>", eos_token="<|endoftext|>"
    )
    phi3.chat_template = PHI3 if name == "phi3" else None
    return phi3


@pytest.fixture(scope="session")
def byte_tokenizer():
    return build_byte_tokenizer


@pytest.fixture(scope="session")
def word_tokenizer():
    return build_word_tokenizer()


@pytest.fixture(scope="session")
def example():
    return build_example


@pytest.fixture(scope="session")
def real_tokenizer():
    return load_real_tokenizer


@pytest.fixture(scope="session")
def data_folder():
    return find_data_folder()


@pytest.fixture(scope="session")
def chatml():
    return CHATML
