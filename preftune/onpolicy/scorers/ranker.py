"""A pairwise ranker (PairRM and its like): a sequence classifier with one label, whose number is the log-odds that the
first of two answers is the better one. It reads both in one text, in both orders; a score is the mean chance to win.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from preftune.errors import ModelError, RecipeError
from preftune.model.place import find_model
from preftune.onpolicy.local import weights_mark
from preftune.onpolicy.scorers.base import Score, conversation
from preftune.onpolicy.scorers.games import all_games, scores_of
from preftune.serve.reward import BATCH_TOKENS, open_reward_model, run_padded
from preftune.types import Example

log = logging.getLogger(__name__)
TEMPLATE = "{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}"
SPARE = 16  # tokens that special tokens and the seams of cut texts may add


class RankerScorer:
    """A ranker with the text that it was trained on.

    Args:
        template: with {prompt}, {a} and {b}.

    Raises:
        ModelError: there is no classifier with one label.
        RecipeError: the template lacks a part.
    """

    def __init__(
        self, name: str, template: str = TEMPLATE, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None
    ) -> None:
        missing = [part for part in ("{prompt}", "{a}", "{b}") if part not in template]
        if missing:
            raise RecipeError(f"The ranker's template has no {missing[0]}; expected {{prompt}}, {{a}} and {{b}} in it.")
        self.name, self.template, self.batch_tokens, self.max_length = name, template, batch_tokens, max_length
        self.reward = open_reward_model(name)
        limits = [limit for limit in (self.reward.context, max_length) if limit is not None]
        self.limit = min(limits, default=None)

    def settings(self) -> dict[str, Any]:
        marks = {"ranker": self.name, "weights": weights_mark(find_model(self.name))}
        return {**marks, "template": self.template, "max_length": self.max_length}

    @torch.inference_mode()
    def score(self, examples: Sequence[Example]) -> list[list[Score]]:
        games = [all_games(example.responses) for example in examples]
        rows = [
            self._ids(example, example.responses[game.first], example.responses[game.second])
            for example, own in zip(examples, games, strict=True)
            for game in own
        ]
        logits = run_padded(self.reward, rows, self.batch_tokens) if rows else []
        won = iter(self._chance(logit) for logit in logits)
        return [
            scores_of(example.responses, [(game, next(won), None) for game in own])
            for example, own in zip(examples, games, strict=True)
        ]

    def _chance(self, logit: float) -> float:
        if not math.isfinite(logit):
            raise ModelError(f"The ranker '{self.name}' gives {logit}, expected a finite number. Check the weights.")
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0

    def _ids(self, example: Example, first: str, second: str) -> dict[str, list[int]]:
        prompt = conversation(example)
        ids = self._encode(prompt, first, second)
        if self.limit is None or len(ids) <= self.limit:
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        frame = len(self._encode("", "", "")) + SPARE
        room = (self.limit - frame) // 3
        if room < 1:
            raise ModelError(f"The ranker '{self.name}' reads {self.limit} tokens, which is too few for its template.")
        log.info("%s: the texts are cut to %d tokens each, the ranker reads %d.", example.origin, room, self.limit)
        ids = self._encode(self._end(prompt, room), self._start(first, room), self._start(second, room))
        return {"input_ids": ids[: self.limit], "attention_mask": [1] * min(len(ids), self.limit)}

    def _encode(self, prompt: str, first: str, second: str) -> list[int]:
        parts = {"{prompt}": prompt, "{a}": first, "{b}": second}
        text = self.template
        marks = sorted(parts, key=text.index)
        pieces, rest = [], text
        for mark in marks:  # an answer may itself hold "{b}"
            before, _, rest = rest.partition(mark)
            pieces += [before, parts[mark]]
        return list(self.reward.tokenizer("".join([*pieces, rest]), verbose=False)["input_ids"])

    def _start(self, text: str, tokens: int) -> str:
        return self._decode(self._plain(text)[:tokens])

    def _end(self, text: str, tokens: int) -> str:
        return self._decode(self._plain(text)[-tokens:])

    def _plain(self, text: str) -> list[int]:
        return list(self.reward.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, ids: list[int]) -> str:
        return str(self.reward.tokenizer.decode(ids))
