"""The tokenizer of the demo, trained once for all of its tests."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from preftune.demo.corpus import corpus_texts
from preftune.demo.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus_texts())
