"""Our own designs, in the project's environment, over protocol.py.

`preftune`  the product's step, as the trainer runs it.
`padded`    the same down the product's padded road, which models take that cannot share a prompt.
`naive`     the textbook step, for scale: pad, feed prompt and response once per response, all logits, float32
            log-softmax, gather.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import protocol
import torch
import torch.nn.functional as F
from padding import IGNORED, pad_pairs, sequence_lengths
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from workload import BETA, GAMMA, LEARNING_RATE, MAX_GRAD_NORM, Pair

from preftune.data.plan import Cut
from preftune.model.head_gradient import straight_into_grad
from preftune.model.policy import to_policy
from preftune.objectives.simpo import SimPO
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.step import Packing, StepLoss, build_step, micro_batch_loss, step_counts
from preftune.types import Origin, TokenizedGroup

PACKAGES = ("torch", "transformers", "accelerate", "preftune")

Rows = list[Pair]


# --- the product's step -----------------------------------------------------------------------------------------

SIMPO = StepLoss(SimPO(beta=BETA, gamma_beta_ratio=GAMMA / BETA))


def one_step(model: nn.Module, rows: Rows, precision: str) -> float:
    """Plan, pack, forward, backward: adds to the gradients and gives the loss, averaged over the groups."""
    cut = Cut(max_tokens=default_micro_batch_tokens(torch.device("cpu")))
    step = build_step(to_groups(rows), cut, packing=Packing(padded=model.road == "padded"))
    counts = step_counts(step)
    total = 0.0
    for batch in step.micro_batches:
        with straight_into_grad():
            with autocast(precision):
                loss, _ = micro_batch_loss(model, batch, SIMPO, counts)
            loss.backward()
        total += loss.item()
    return total


def to_groups(rows: Rows) -> list[TokenizedGroup]:
    return [
        TokenizedGroup(pair.prompt, [pair.chosen, pair.rejected], Origin("synthetic", "train", row))
        for row, pair in enumerate(rows, start=1)
    ]


# --- the textbook step ------------------------------------------------------------------------------------------


def naive_step(model: nn.Module, rows: Rows, precision: str) -> float:
    """The same loss from padded sequences and all logits."""
    input_ids, attention_mask, labels = pad_pairs(rows)
    with autocast(precision):
        logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits
    means = response_means(logits, labels)
    chosen, rejected = means.view(2, -1)
    loss = -F.logsigmoid(BETA * (chosen - rejected) - GAMMA).mean()
    loss.backward()
    return loss.item()


def response_means(logits: Tensor, labels: Tensor) -> Tensor:
    """(2n,) mean log-probability of the scored tokens, from logits (2n, L, V)."""
    labels = labels[:, 1:]
    scored = labels != IGNORED
    logps = logits[:, :-1].float().log_softmax(-1)
    chosen_words = logps.gather(2, labels.where(scored, 0).unsqueeze(2)).squeeze(2)
    return (chosen_words * scored).sum(1) / scored.sum(1)


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


# --- the worker -------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[nn.Module, Rows, str], float]] = {
    "preftune": one_step,
    "padded": one_step,
    "naive": naive_step,
}
ROADS = {"preftune": "packed", "padded": "padded"}


class OwnDesign:
    """protocol.Design over one of STEPS, with fused AdamW on float32 weights."""

    def __init__(self, design: str, weights: Path, precision: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).train()
        self.model = to_policy(model, road=ROADS[design]) if design in ROADS else model
        self.step, self.precision = STEPS[design], precision
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.notes: list[str] = []

    def prepare(self, pairs: list[Pair]) -> Rows:
        return pairs

    def backward(self, rows: Rows) -> float:
        return self.step(self.model, rows, self.precision)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient_mib(self) -> float:
        return protocol.gradient_mib(self.model.parameters())

    def sequence_lengths(self, rows: Rows) -> list[int]:
        return sequence_lengths(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--design", choices=tuple(STEPS), required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answers = protocol.claim_stdout()
    torch.set_num_threads(arguments.threads)
    protocol.serve_design(answers, OwnDesign(arguments.design, arguments.weights, arguments.precision), PACKAGES)


if __name__ == "__main__":
    main()
