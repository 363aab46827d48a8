"""A padded body with Liger's fused SimPO loss, over protocol.py, in the environment of the peers (install_peers.sh).

`liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss` as its documentation shows it: chosen and rejected sequences
concatenated and padded right, the decoder's states and the shifted labels handed to the loss together with the head's
weight, one pair a chunk (its default). `compiled=False`: by default it compiles a fresh closure in every forward pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import protocol
import torch
from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss
from padding import IGNORED, pad_pairs, sequence_lengths
from torch import nn
from transformers import AutoModelForCausalLM
from workload import BETA, GAMMA, LEARNING_RATE, MAX_GRAD_NORM, Pair

PACKAGES = ("torch", "liger-kernel", "transformers")


class LigerSimPO:
    """protocol.Design over Liger's loss, with fused AdamW on float32 weights."""

    def __init__(self, weights: Path, precision: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).train()
        self.precision = precision
        self.loss = LigerFusedLinearSimPOLoss(
            ignore_index=IGNORED, beta=BETA, gamma=GAMMA, compute_nll_loss=False, compiled=False
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.notes = ["fused linear SimPO loss, not compiled, one pair a chunk; padded body"]

    def prepare(self, pairs: list[Pair]) -> list[Pair]:
        return pairs

    def backward(self, rows: list[Pair]) -> float:
        loss = simpo_loss(self.model, self.loss, rows, self.precision)
        loss.backward()
        return loss.item()

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient_mib(self) -> float:
        return protocol.gradient_mib(self.model.parameters())

    def sequence_lengths(self, rows: list[Pair]) -> list[int]:
        return sequence_lengths(rows)


def simpo_loss(model: nn.Module, fused: nn.Module, pairs: list[Pair], precision: str) -> torch.Tensor:
    """The mean loss over the pairs, a scalar to call backward on."""
    device = next(model.parameters()).device
    input_ids, attention_mask, labels = (x.to(device) for x in pad_pairs(pairs))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        states = model.get_decoder()(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        loss, _ = fused(model.lm_head.weight, states[:, :-1], labels[:, 1:].contiguous())
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answers = protocol.claim_stdout()
    torch.set_num_threads(arguments.threads)
    protocol.serve_design(answers, LigerSimPO(arguments.weights, arguments.precision), PACKAGES)


if __name__ == "__main__":
    main()
