"""Scores of a model with code of its own, whose forward pass returns an object with `.score` (ArmoRM and its like).

    output = model(input_ids=ids);  output.score     (B,) or (B, 1)

Sequences of the same length run together and nothing is padded, since nobody knows what such code makes of padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from preftune.data import tokenize_examples
from preftune.errors import ModelError
from preftune.model.load import checked_place, load_tokenizer, one_line
from preftune.onpolicy.local import weights_mark
from preftune.onpolicy.scorers.base import Score, to_score
from preftune.serve.reward import BATCH_TOKENS
from preftune.types import Example

CLASSES = ("AutoModelForSequenceClassification", "AutoModel", "AutoModelForCausalLM")  # the first that its code names


class CustomModelScorer:
    """A model whose own code runs here.

    Args:
        trust_remote_code: the consent to that.

    Raises:
        ModelError: there is no consent, or no such model.
    """

    def __init__(
        self, name: str, *, trust_remote_code: bool, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None
    ) -> None:
        if not trust_remote_code:
            raise ModelError(
                f"'{name}' is to run the code that comes with it. Read that code, and give --trust-remote-code."
            )
        self.name, self.batch_tokens, self.max_length = name, batch_tokens, max_length
        self.tokenizer = load_tokenizer(name, trust_remote_code=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = _load(name, "auto" if device == "cuda" else torch.float32).to(device).eval()
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.limit = min((length for length in (context, max_length) if length is not None), default=None)

    def settings(self) -> dict[str, Any]:
        return {"custom_model": self.name, "weights": weights_mark(self.name), "max_length": self.max_length}

    @torch.inference_mode()
    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        alone = [replace(example, responses=(text,), scores=()) for example in examples for text in example.responses]
        groups, _ = tokenize_examples(alone, self.tokenizer, max_length=self.limit)
        sequences = [group.prompt_ids + group.response_ids[0] for group in groups]
        found: dict[int, float] = {}
        for batch in _same_length(sequences, self.batch_tokens):
            for place, value in zip(batch, self._run([sequences[place] for place in batch]), strict=True):
                if not math.isfinite(value):
                    raise ModelError(
                        f"{alone[place].origin}: the score of '{self.name}' is {value}, expected a number."
                    )
                found[place] = value
        values = (to_score(found[place]) for place in range(len(alone)))
        return [[next(values) for _ in example.responses] for example in examples]

    def _run(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        ids = torch.tensor(sequences, device=self.model.device)
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        score = getattr(output, "score", None)
        if not isinstance(score, torch.Tensor) or score.numel() != len(sequences):
            shape = f"of shape {tuple(score.shape)}" if isinstance(score, torch.Tensor) else type(score).__name__
            raise ModelError(
                f"'{self.name}' must return a 'score' with one number a sequence, found {shape} for {len(sequences)}. "
                "A sequence classifier with one label is a --reward-model."
            )
        return [float(value) for value in score.float().flatten().tolist()]


def _load(name: str, dtype: Any) -> Any:
    place = checked_place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=True)
        named = getattr(config, "auto_map", None) or {}
        kind = next((kind for kind in CLASSES if kind in named), CLASSES[0])
        return getattr(transformers, kind).from_pretrained(place, trust_remote_code=True, dtype=dtype)
    except Exception as cause:  # whatever its code raises
        raise ModelError(f"No model can be loaded from '{name}': {one_line(cause)}") from cause


def _same_length(sequences: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for place in sorted(range(len(sequences)), key=lambda place: -len(sequences[place])):
        length = len(sequences[place])
        if batches and len(sequences[batches[-1][0]]) == length and (len(batches[-1]) + 1) * length <= batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
