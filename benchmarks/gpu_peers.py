"""The peers' designs for gpu.py, in their environment (install_peers.sh).

`trl-cpo`  CPOTrainer with loss_type "simpo" and cpo_alpha 0; `trl-dpo` DPOTrainer with precomputed reference log-probs
(zeros: their values cost nothing), another loss and here for its speed. A step is what worker_trl.py says.
`liger`    a padded body with Liger's fused SimPO loss (worker_liger.py), compiled as it is by default on a GPU.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from gpu_designs import LONGEST, GpuDesign, Mark, Options, PaddedDesign, micro_batches
from torch import Tensor
from worker_trl import PLENTY_OF_STEPS, build_tokenizer, simpo_config, text_row
from workload import LEARNING_RATE, MAX_GRAD_NORM, Pair, exact_pairs


class TrlDesign(GpuDesign):
    """One of TRL's trainers, its collator, `training_step`, clipping and optimizer."""

    def __init__(self, options: Options, trainer_of: Any) -> None:
        super().__init__(options)
        self.scratch = tempfile.TemporaryDirectory()
        self.trainer = trainer_of(self.model, self.optimizer, options, self.scratch.name)
        loader = self.trainer.get_train_dataloader()
        self.wrapped, _ = self.trainer._prepare_for_training(PLENTY_OF_STEPS, loader, None)
        self.mark: Mark | None = None
        backward = self.trainer.accelerator.backward

        def marked(loss: Tensor, **kwargs: Any) -> None:
            self.mark("forward")
            backward(loss, **kwargs)
            self.mark("backward")

        self.trainer.accelerator.backward = marked

    def backward(self, pairs: list[Pair], mark: Mark) -> Tensor:
        self.mark = mark
        chunks = list(micro_batches(self.rows(pairs), self.options.pairs))
        self.trainer.current_gradient_accumulation_steps = len(chunks)
        total = torch.zeros((), device=self.options.device)
        for chunk in chunks:
            total += self.trainer.training_step(self.wrapped, self.trainer.data_collator(chunk)).detach()
        return total

    def update(self) -> None:
        if self.optimizer is None:
            self.wrapped.zero_grad()
            return
        self.trainer._clip_grad_norm(self.wrapped)
        self.trainer.optimizer.step()
        self.wrapped.zero_grad()

    def rows(self, pairs: list[Pair]) -> list[Any]:
        """What the trainer's data set would hold."""
        raise NotImplementedError


class TrlCpo(TrlDesign):
    def __init__(self, options: Options) -> None:
        super().__init__(options, build_cpo)

    def rows(self, pairs: list[Pair]) -> list[Any]:
        return [self.trainer.tokenize_row(text_row(pair)) for pair in pairs]


class TrlDpo(TrlDesign):
    def __init__(self, options: Options) -> None:
        super().__init__(options, build_dpo)
        self.notes.append("DPO with precomputed reference log-probs: another loss")

    def rows(self, pairs: list[Pair]) -> list[Any]:
        zero = {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        return [
            {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected, **zero}
            for pair in pairs
        ]


class LigerDesign(PaddedDesign):
    def __init__(self, options: Options) -> None:
        from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss
        from padding import IGNORED
        from workload import BETA, GAMMA

        super().__init__(options)
        compiled = options.device.type == "cuda"
        settings = {"ignore_index": IGNORED, "beta": BETA, "gamma": GAMMA, "compute_nll_loss": False}
        self.loss = LigerFusedLinearSimPOLoss(compiled=compiled, **settings)
        self.notes.append(f"fused linear SimPO loss, {'compiled' if compiled else 'not compiled'}, one pair a chunk")

    def share(self, pairs: list[Pair]) -> Tensor:
        from worker_liger import simpo_loss

        return simpo_loss(self.model, self.loss, pairs, "as the weights")


def build_cpo(model: Any, optimizer: Any, options: Options, scratch: str) -> Any:
    from trl.experimental.cpo import CPOTrainer

    tokenizer = build_tokenizer(options.shape.vocab)
    return CPOTrainer(
        model=model,
        args=simpo_config(options.precision, scratch, **trainer_settings(options)),
        train_dataset=Dataset.from_list([text_row(an_example(options))]),
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )


def build_dpo(model: Any, optimizer: Any, options: Options, scratch: str) -> Any:
    from trl import DPOConfig, DPOTrainer

    settings = {
        "output_dir": scratch,
        "beta": 0.1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "bf16": options.precision == "bf16",
        "precompute_ref_log_probs": True,
        "report_to": [],
        "disable_tqdm": True,
        **trainer_settings(options),
    }
    return DPOTrainer(
        model=model,
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_list([text_row(an_example(options))]),
        processing_class=build_tokenizer(options.shape.vocab),
        optimizers=(optimizer, None),
    )


def trainer_settings(options: Options) -> dict[str, Any]:
    return {
        "use_cpu": options.device.type == "cpu",
        "gradient_checkpointing": options.checkpointing,
        "max_length": LONGEST,
        "per_device_train_batch_size": options.pairs,
    }


def an_example(options: Options) -> Pair:
    """Asked for by the constructors; steps bring their own rows."""
    return exact_pairs(8, 4, 1, options.shape.vocab)[0]


def build(design: str, options: Options) -> GpuDesign:
    return {"trl-cpo": TrlCpo, "trl-dpo": TrlDpo, "liger": LigerDesign}[design](options)
