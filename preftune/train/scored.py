"""Samples of a reward model: the scores of the responses to a few rows, held out or else trained on (`samples.md`)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch

from preftune.model.sharding import is_sharded
from preftune.train.card import cell
from preftune.train.step import build_step

FILE = "samples.md"
SHOWN_ROWS = 8


def write_scored(trainer: Any, folder: Path) -> Path | None:
    """Score the first rows and write the table; one process alone may call it.

    Returns:
        The file; None where the weights are in pieces over the processes, or the trainer has no tokenizer.
    """
    tokenizer = trainer.processing_class
    if tokenizer is None or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or is_sharded(trainer.model):
        return None
    held_out = list(chain.from_iterable(trainer._eval_sets().values()))[:SHOWN_ROWS]
    trained_on = trainer._stream.first if trainer._stream else trainer.train_dataset
    groups = held_out or [trained_on[number] for number in range(min(SHOWN_ROWS, len(trained_on)))]
    step = build_step(groups, trainer.cut, packing=trainer._packing).to(trainer.args.device)
    scores: dict[int, list[float]] = {}
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        for batch, places in zip(step.micro_batches, step.places, strict=True):
            scores |= dict(zip(places, trainer.model(batch=batch).sums.tolist(), strict=True))
    trainer.model.train(was_training)
    what = "held-out rows" if held_out else "rows that were trained on"
    lines = [
        f"# Scores of {len(groups)} {what}",
        "",
        "| prompt | response, the better one first | score |",
        "|---|---|---|",
    ]
    for place, group in enumerate(groups):
        prompt = cell(tokenizer.decode(group.prompt_ids, skip_special_tokens=True))
        for ids, score in zip(group.response_ids, scores[place], strict=False):
            lines.append(f"| {prompt} | {cell(tokenizer.decode(ids, skip_special_tokens=True))} | {score:.3g} |")
            prompt = ""
    path = folder / FILE
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
