"""Our own designs, in the project's environment, over protocol.py.

`preftune`  the product's step, as the trainer runs it.
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
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from workload import BETA, GAMMA, LEARNING_RATE, MAX_GRAD_NORM, PAD, Pair

from preftune.data.plan import Cut
from preftune.model.policy import to_policy
from preftune.objectives.simpo import SimPO
from preftune.train.arguments import default_micro_batch_tokens
from preftune.train.heap import keep_freed_memory
from preftune.train.step import StepLoss, build_step, micro_batch_loss, step_counts
from preftune.types import Origin, TokenizedGroup

PACKAGES = ("torch", "transformers", "accelerate", "preftune")
IGNORED = -100

Groups = list[TokenizedGroup]


# --- the product's step -----------------------------------------------------------------------------------------

SIMPO = StepLoss(SimPO(beta=BETA, gamma_beta_ratio=GAMMA / BETA))


def one_step(model: nn.Module, groups: Groups, precision: str) -> float:
    """Plan, pack, forward, backward: adds to the gradients and gives the loss, averaged over the groups."""
    step = build_step(groups, Cut(max_tokens=default_micro_batch_tokens(torch.device("cpu"))))
    counts = step_counts(step)
    total = 0.0
    for batch in step.micro_batches:
        with autocast(precision):
            loss, _ = micro_batch_loss(model, batch, SIMPO, counts)
        loss.backward()
        total += loss.item()
    return total


# --- the textbook step ------------------------------------------------------------------------------------------


def naive_step(model: nn.Module, groups: Groups, precision: str) -> float:
    """The same loss from padded sequences and all logits."""
    input_ids, attention_mask, labels = pad_pairs(groups)
    with autocast(precision):
        logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits
    means = response_means(logits, labels)
    chosen, rejected = means.view(2, -1)
    loss = -F.logsigmoid(BETA * (chosen - rejected) - GAMMA).mean()
    loss.backward()
    return loss.item()


def pad_pairs(groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and labels (2n, L): all chosen, then all rejected; prompts and padding not scored."""
    sequences = [(group.prompt_ids, group.response_ids[side]) for side in (0, 1) for group in groups]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids = torch.full((len(sequences), width), PAD)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor(prompt + response)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return input_ids, attention_mask, labels


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

STEPS: dict[str, Callable[[nn.Module, Groups, str], float]] = {"preftune": one_step, "naive": naive_step}


class OwnDesign:
    """protocol.Design over one of STEPS, with fused AdamW on float32 weights."""

    def __init__(self, design: str, weights: Path, precision: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).train()
        self.model = model
        if design == "preftune":
            self.model = to_policy(model, road="packed")
            keep_freed_memory()
        self.step, self.precision = STEPS[design], precision
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.notes: list[str] = []

    def prepare(self, pairs: list[Pair]) -> Groups:
        return [
            TokenizedGroup(pair.prompt, [pair.chosen, pair.rejected], Origin("synthetic", "train", row))
            for row, pair in enumerate(pairs, start=1)
        ]

    def backward(self, rows: Groups) -> float:
        return self.step(self.model, rows, self.precision)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient_mib(self) -> float:
        return protocol.gradient_mib(self.model.parameters())

    def sequence_lengths(self, rows: Groups) -> list[int]:
        return [len(group.prompt_ids) + len(group.response_ids[side]) for side in (0, 1) for group in rows]


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
