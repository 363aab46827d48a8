"""TRL's SimPO, as its users run it: `trl.experimental.cpo.CPOTrainer` with loss_type "simpo" and cpo_alpha 0.

Runs in the environment of the peers (install_peers.sh) and speaks protocol.py. A step is what the body of
`Trainer._run_epoch` does per optimizer step: the trainer's collator, `training_step`, its gradient clipping, its
optimizer (transformers' default, fused AdamW) and scheduler. Logging, saving and callbacks are left out, which can only
flatter it. Rows pass through the trainer's own `tokenize_row`, with a word-level tokenizer whose words are the ids.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import protocol
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.training_args import OptimizerNames
from trl.experimental.cpo import CPOConfig, CPOTrainer
from workload import BETA, BOS, EOS, FIRST_WORD, GAMMA, LEARNING_RATE, MAX_GRAD_NORM, PAD, UNK, Pair, exact_pairs

PACKAGES = ("torch", "trl", "transformers", "accelerate", "peft", "datasets", "tokenizers")
# The words never start like a special token: the tokenizer looks for special tokens inside words, too.
SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", UNK: "<unk>"}
PLENTY_OF_STEPS = 1_000_000


class TrlSimPO:
    """protocol.Design over CPOTrainer."""

    def __init__(self, weights: Path, precision: str, scratch: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
        tokenizer = build_tokenizer(model.config.vocab_size)
        example = text_row(exact_pairs(8, 4, 1, model.config.vocab_size)[0])
        self.trainer = CPOTrainer(
            model=model,
            args=simpo_config(precision, scratch),
            train_dataset=Dataset.from_list([example]),  # asked for by the constructor; steps bring their own rows
            processing_class=tokenizer,
        )
        # What train() does before its loop: optimizer, accelerate's wrapping (autocast), scheduler.
        self.model, _ = self.trainer._prepare_for_training(PLENTY_OF_STEPS, self.trainer.get_train_dataloader(), None)
        # Set by the loop of train(); training_step divides by it.
        self.trainer.current_gradient_accumulation_steps = 1
        self.notes = [
            f"optimizer {OptimizerNames(self.trainer.args.optim).value}, attention {model.config._attn_implementation}"
        ]

    def prepare(self, pairs: list[Pair]) -> list[dict]:
        return [self.trainer.tokenize_row(text_row(pair)) for pair in pairs]

    def backward(self, rows: list[dict]) -> float:
        batch = self.trainer.data_collator(rows)
        return self.trainer.training_step(self.model, batch).item()

    def update(self) -> None:
        trainer = self.trainer
        assert trainer.optimizer and trainer.lr_scheduler  # made by _prepare_for_training
        trainer._clip_grad_norm(self.model)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()

    def gradient_mib(self) -> float:
        return protocol.gradient_mib(self.model.parameters())

    def sequence_lengths(self, rows: list[dict]) -> list[int]:
        return [len(row[f"{side}_input_ids"]) for side in ("chosen", "rejected") for row in rows]


def simpo_config(precision: str, scratch: str, **changes: Any) -> CPOConfig:
    """The user's settings; everything not named is TRL's default."""
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        "beta": BETA,
        "simpo_gamma": GAMMA,
        "max_length": 1024,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "bf16": precision == "bf16",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return CPOConfig(**{**settings, **changes})


def build_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """One word per id, so that text and ids are the same thing."""
    words = chain(SPECIAL.items(), ((number, f"t{number}") for number in range(FIRST_WORD, vocab)))
    tokenizer = Tokenizer(WordLevel({word: number for number, word in words}, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
    )


def text_row(pair: Pair) -> dict[str, str]:
    """The pair as the text columns TRL asks for; responses start with a space, or the words would run together."""
    prompt, chosen, rejected = (
        " ".join(SPECIAL.get(number, f"t{number}") for number in ids)
        for ids in (pair.prompt, pair.chosen, pair.rejected)
    )
    return {"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answers = protocol.claim_stdout()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        protocol.serve_design(answers, TrlSimPO(arguments.weights, arguments.precision, scratch), PACKAGES)


if __name__ == "__main__":
    main()
