"""Trains a small float64 model for six steps, whole or from a checkpoint, in as many processes as it is started with.

python -m torch.distributed.run --nproc_per_node N tests/slow/other_world.py FOLDER [FOLDER-OF-CHECKPOINTS]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from preftune.data.plan import Cut
from preftune.train.arguments import PreferenceArguments
from preftune.train.trainer import PreferenceTrainer
from tests.slow.ranks import PAIRS, ROWS
from tests.small import build_model

# a live frozen copy, a baseline of the steps before, one over the whole step, and log-probs on disk
RUNS = {"simpo": PAIRS, "dpo": PAIRS, "bco_pair": PAIRS, "kto": ROWS}


def main(folder: Path, begun: Path | None) -> None:
    found = {}
    for objective, data in RUNS.items():
        args = PreferenceArguments(
            output_dir=str(folder / objective),
            per_device_train_batch_size=8 // int(os.environ["WORLD_SIZE"]),
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=2,  # a window is open at the checkpoint
            save_steps=3,
            report_to="none",
            disable_tqdm=True,
        )
        model = build_model("llama", torch.float64)
        trainer = PreferenceTrainer(model, args, objective=objective, train_dataset=data, cut=Cut(max_groups=3))
        trainer.train(None if begun is None else str(begun / objective / "checkpoint-3"))
        lines = [line for line in trainer.state.log_history if "loss" in line]
        losses = {str(line["step"]): line["loss"] for line in lines}
        found[objective] = {"losses": losses, "weights": {k: v.clone() for k, v in model.state_dict().items()}}
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
