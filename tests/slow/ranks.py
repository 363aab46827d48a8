"""Trains a small float64 model with several objectives, in as many processes as it is started with.

python -m torch.distributed.run --nproc_per_node N tests/slow/ranks.py FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from preftune.data.plan import Cut
from preftune.train.arguments import PreferenceArguments
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_groups, build_model

PAIRS = build_groups(22, longest=40)
ROWS = [replace(g, scores=(float(n % 2),)) for n, g in enumerate(build_groups(22, responses=1, longest=40))]
RUNS = {  # objective -> data, what the trainer takes beside it
    "cpo": (PAIRS, {"sft_weight": 1.0}),
    "orpo": (PAIRS, {}),
    "sft": (ROWS, {}),
    "slic_hf": (PAIRS, {"sft_weight": 0.1, "sft_normalization": "sum"}),
    "dpo": (PAIRS, {}),
    "ipo": (PAIRS, {"precompute_reference": True}),
    "kto": (ROWS, {}),
    "bco_pair": (PAIRS, {}),
    "aot": (PAIRS, {}),
    "simpo": (PAIRS, {"torch_compile": True, "torch_compile_backend": "aot_eager"}),
}


def main(folder: Path) -> None:
    found = {}
    for objective, (data, own) in RUNS.items():
        compiling = {key: value for key, value in own.items() if key.startswith("torch_compile")}
        args = PreferenceArguments(
            **compiling,
            output_dir=str(folder / objective),
            per_device_train_batch_size=8 // int(os.environ["WORLD_SIZE"]),
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = build_model("llama", torch.float64)
        trainer = PreferenceTrainer(
            model,
            args,
            objective=objective,
            train_dataset=data,
            cut=Cut(max_groups=3),
            reference_cache=folder / "cache",
            **{key: value for key, value in own.items() if key not in compiling},
        )
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        found[objective] = {"losses": losses, "weights": {k: v.clone() for k, v in model.state_dict().items()}}
    if trainer.is_world_process_zero():
        torch.save(found, folder / "found.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
