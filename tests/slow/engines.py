"""Trains a small float32 model under one engine with several objectives, in as many processes as it is started with.

python -m torch.distributed.run --nproc_per_node N tests/slow/engines.py FOLDER ENGINE [RUN ...]

Leaves FOLDER/found.pt: for each run the losses, the weights gathered whole, how many numbers of the model each rank
held, and the final folder, saved as a recipe's run saves it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM

from preftune.data.plan import Cut
from preftune.model.lora import LoraSettings, add_adapter
from preftune.train.arguments import PreferenceArguments
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_groups, build_model

PAIRS = build_groups(17, longest=40)  # two steps of eight groups and one of a single group
ROWS = [replace(g, scores=(float(n % 2),)) for n, g in enumerate(build_groups(17, responses=1, longest=40))]


@dataclass(frozen=True)
class Run:
    objective: str
    data: list = field(default_factory=lambda: PAIRS)
    model: str = "llama"
    own: dict[str, Any] = field(default_factory=dict)  # what the trainer takes beside it
    reference: bool = False  # another model
    lora: tuple[str, ...] = ()
    resumed: bool = False
    changes: dict[str, Any] = field(default_factory=dict)  # of the arguments


RUNS = {
    "simpo": Run("simpo", resumed=True),
    "dpo": Run("dpo", model="llama-tied", own={"sft_weight": 0.5}, resumed=True),
    "kto": Run("kto", ROWS),
    "ipo": Run("ipo", reference=True),
    "lora": Run("dpo", lora=("q_proj", "v_proj", "lm_head"), changes={"learning_rate": 3e-3}),
    "bf16": Run("simpo", changes={"bf16": True}),
}
ZERO = {
    "zero_optimization": {"reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}},
    "fsdp2-as-users-start-it": {"fsdp": True, "fsdp_config": {"version": 2}},
    "zero2": {"deepspeed": {**ZERO, "zero_optimization": {**ZERO["zero_optimization"], "stage": 2}}},
    "zero3": {"deepspeed": {**ZERO, "zero_optimization": {"stage": 3, "reduce_bucket_size": 100_000}}},
}


def let_fsdp_run_on_cpu() -> None:
    """accelerate shards for accelerators only; with this it takes the same road on CPU."""
    usual = AcceleratorState.__init__

    def switched(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = switched


def arguments(folder: Path, engine: str, **changes: Any) -> PreferenceArguments:
    settings = {
        "per_device_train_batch_size": 8 // int(os.environ.get("WORLD_SIZE", "1")),
        "num_train_epochs": 2,
        "learning_rate": 5e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return PreferenceArguments(output_dir=str(folder), **{**settings, **ENGINES[engine], **changes})


def save_models(folder: Path) -> Path:
    """The models as files: under ZeRO-3 only what is loaded from files is cut in pieces with its values."""
    folder = folder / f"models-{os.environ.get('RANK', '0')}"
    for name in ("llama", "llama-tied"):
        build_model(name).save_pretrained(folder / name)
    build_model("llama", seed=1).save_pretrained(folder / "reference")
    return folder


def build_trainer(run: Run, args: PreferenceArguments, models: Path) -> PreferenceTrainer:
    model = AutoModelForCausalLM.from_pretrained(models / run.model, attn_implementation="eager").train()
    if run.lora:
        settings = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=list(run.lora))
        torch.manual_seed(1)
        model = add_adapter(model, settings, task="CAUSAL_LM")
    given = {"cut": Cut(max_tokens=150, max_groups=3), **run.own}
    if run.reference:
        given["reference_model"] = AutoModelForCausalLM.from_pretrained(models / "reference")
    return PreferenceTrainer(model, args, objective=run.objective, train_dataset=run.data, **given)


def losses_of(trainer: PreferenceTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main(folder: Path, engine: str, names: list[str]) -> None:
    if engine == "fsdp2":
        let_fsdp_run_on_cpu()
    models, found = save_models(folder), {}
    for name in names:
        run = RUNS[name]
        saving = {"save_strategy": "steps", "save_steps": 4} if run.resumed else {}
        args = arguments(folder / name, engine, **saving, **run.changes)
        trainer = build_trainer(run, args, models)
        trainer.train()
        trainer.save_model()
        found[name] = {"losses": losses_of(trainer), "held": held_by_each(trainer)}
        if run.resumed:
            trainer = build_trainer(run, arguments(folder / f"{name}-resumed", engine, **run.changes), models)
            trainer.train(resume_from_checkpoint=str(folder / name / "checkpoint-4"))
            trainer.save_model()
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def held_by_each(trainer: PreferenceTrainer) -> list[int]:
    """How many numbers of the model each rank holds in memory."""
    held = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    for weight in trainer.model.parameters():
        local = getattr(weight, "ds_tensor", weight)
        local = local.to_local() if hasattr(local, "to_local") else local
        held[dist.get_rank()] += local.numel()
    dist.all_reduce(held)
    return held.tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(RUNS))
