"""Readings of a packed batch token by token: log-probs and entropies of a policy, values of a scorer.

Given to a model as `read` (`preftune.model.policy`, `preftune.model.heads`), so that hooks of engines run:

    policy(batch=batch, read=TokenLogps(temperature))   -> (N,), in the order of the batch's targets
    scorer(batch=batch, read=token_values)              -> (N,)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune.model.heads import linear_scores
from preftune.model.logps import HeadTransform, chunked_logps, compute_dtype, rows_per_tile
from preftune.model.policy import scoring_head, states_of
from preftune.model.value_head import HEAD
from preftune.types import PackedBatch


@dataclass(frozen=True)
class TokenLogps:
    """log π(y_t | x, y_<t) of every token of the responses, nats, of the distribution at `temperature`.

    Args:
        temperature: logits are divided by it, after soft-cap and scale, as in sampling.
        entropy: give the entropies of these distributions too, without gradient.
    """

    temperature: float = 1.0
    entropy: bool = False

    def __call__(self, model: Any, batch: PackedBatch) -> Any:
        """(N,) log-probs, differentiable; with `entropy` a pair, the second (N,) entropies."""
        states, head = states_of(model, batch), scoring_head(model)
        transform = self._transform(model)
        logps = head(states, score=lambda s, weight, bias: chunked_logps(s, weight, bias, batch.targets, transform))
        if not self.entropy:
            return logps
        with torch.no_grad():
            return logps, head(states.detach(), score=lambda s, weight, bias: entropies(s, weight, bias, transform))

    def _transform(self, model: Any) -> HeadTransform:
        """c·tanh(s·x/c) / T is c'·tanh(s'·x/c') with s' = s/T and c' = c/T."""
        own = HeadTransform.of(model.config.get_text_config())
        softcap = None if own.softcap is None else own.softcap / self.temperature
        return HeadTransform(own.scale / self.temperature, softcap)


def token_values(model: Any, batch: PackedBatch) -> Tensor:
    """(N,) values of a scorer: its head at the state that predicts each token, before that token is known."""
    return getattr(model, HEAD)(states_of(model, batch), score=linear_scores)


@torch.no_grad()
def entropies(states: Tensor, weight: Tensor, bias: Tensor | None, transform: HeadTransform) -> Tensor:
    """(N,) nats, from states (N, D) and a head (V, D), a tile of rows at a time."""
    compute = compute_dtype(states.device.type, states.dtype)
    rows = rows_per_tile(weight.shape[0], states.device, torch.float32)
    found = []
    with torch.autocast(states.device.type, enabled=False):
        columns = weight.to(compute).t()
        for start in range(0, states.shape[0], rows):
            logits = (states[start : start + rows].to(compute) @ columns).to(
                torch.promote_types(compute, torch.float32)
            )
            logps = transform.apply_(logits if bias is None else logits + bias).log_softmax(dim=-1)
            found.append(-(logps.exp() * logps).sum(dim=-1))
    return torch.cat(found)
