"""The demo's settings: model, SFT and SimPO. Names are recipe keys; the figures they give are in the README."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the small Llama (tied head): 3.74 million parameters with 2048 tokens."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 256


@dataclass(frozen=True)
class SftSettings:
    """Fine-tuning on both languages. `num_train_epochs` passes are written out as one pass of rows."""

    learning_rate: float = 1e-3
    num_train_epochs: int = 6
    total_batch_size: int = 16
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class SimpoSettings:
    """Preference training: Chinese chosen, English rejected."""

    learning_rate: float = 5e-5
    num_train_epochs: int = 1
    total_batch_size: int = 32
    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    sft_weight: float = 1.0
    warmup_ratio: float = 0.1
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0


# Shown before and after in every run, whichever side of the split their facts fall on.
FIXED_QUESTIONS = (
    "你是谁？",
    "Who are you?",
    "西湖醋鱼怎么做？",
    "How do I cook West Lake vinegar fish?",
    "法国的首都是哪里？",
    "What is the capital of France?",
    "What colour is snow?",
    "I am bored.",
)

MODEL = ModelSettings()
SFT = SftSettings()
SIMPO = SimpoSettings()
