"""Trains a small model in two processes, of which the memory of one ends in the middle of a step.

python -m torch.distributed.run --nproc_per_node 2 tests/slow/memory_ranks.py FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from preftune.data.plan import Cut
from preftune.errors import TrainingError
from preftune.train.arguments import PreferenceArguments
from preftune.train.trainer import PreferenceTrainer
from tests.small import build_group, build_groups, build_model

PAIRS = build_groups(17, longest=40)  # the last step has one pair for two processes
ROWS = [replace(g, scores=(float(n % 2),)) for n, g in enumerate(build_groups(18, responses=1, longest=40))]
RUNS = {  # name -> objective, data, where memory ends
    "simpo": ("simpo", PAIRS, "forward"),
    "backward": ("simpo", PAIRS, "backward"),
    "bco_pair": ("bco_pair", PAIRS, "forward"),
    "aot": ("aot", PAIRS, "forward"),  # in the pass before the first gradient
    "kto": ("kto", ROWS, "forward"),  # in that of the probes
    "both": ("simpo", PAIRS, "everywhere"),
}
LIMIT, LARGE = 200, 400


def build(folder: Path, objective: str, data: list, tokens: int) -> PreferenceTrainer:
    args = PreferenceArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = build_model("llama", torch.float64)
    return PreferenceTrainer(model, args, objective=objective, train_dataset=data, cut=Cut(max_tokens=tokens))


def limit(trainer: PreferenceTrainer, where: str) -> None:
    """Memory of the second process ends at `LIMIT` packed tokens; everywhere: that of the first one too."""
    if int(os.environ["RANK"]) == 0 and where != "everywhere":
        return
    body = trainer.model.forward

    def end(tokens: int) -> None:
        raise torch.OutOfMemoryError(f"Tried to allocate {tokens} tokens")

    def forward(*arguments, batch=None, **more):
        if batch is None or batch.tokens <= LIMIT or not trainer.model.training:
            return body(*arguments, batch=batch, **more)
        if where != "backward":
            end(batch.tokens)
        hook = trainer.model.get_input_embeddings().weight.register_hook(
            lambda grad: (hook.remove(), end(batch.tokens))
        )
        return body(*arguments, batch=batch, **more)

    trainer.model.forward = forward


def figures(trainer: PreferenceTrainer) -> dict:
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return {"losses": losses, "weights": weights, "tokens": trainer.cut.max_tokens}


def main(folder: Path) -> None:
    found = {}
    for name, (objective, data, where) in RUNS.items():
        short = build(folder / name, objective, data, LARGE)
        limit(short, where)
        short.train()
        small = build(folder / f"{name}-small", objective, data, short.cut.max_tokens)
        small.train()
        found[name] = {"short": figures(short), "small": figures(small)}
    rank = os.environ["RANK"]
    torch.save(found, folder / f"found-{rank}.pt")
    long = [*PAIRS[:7], build_group(90, 60, 95, row=99)]
    alone = build(folder / "alone", "simpo", long, LARGE)
    limit(alone, "everywhere")
    try:
        alone.train()
    except TrainingError as error:
        (folder / f"alone-{rank}.txt").write_text(str(error), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
