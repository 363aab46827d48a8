"""The demo's files and its SFT model.

In: a folder and a seed. Out, under the folder: `data/*.jsonl` (SFT rows, pairs, held-out pairs), `base/` (random
weights and the tokenizer) and `sft/` (the model that knows every fact in both languages).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.demo.corpus import PairRow, SftRow, corpus_texts, pair_rows, sft_rows
from preftune.demo.model import build_model
from preftune.demo.settings import SFT, SIMPO, SftSettings, SimpoSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.recipe import Recipe
from preftune.train.checkpoint import set_aside
from preftune.train.run import quiet_transformers, train_recipe

logger = logging.getLogger(__name__)
FOLDER = "runs/demo"
SFT_FOLDER = f"{FOLDER}/sft"  # what training_configs/demo-simpo.yaml starts from
PAIR_COLUMNS = {"question": "prompt", "answer_zh": "chosen", "answer_en": "rejected"}
SWAPPED_COLUMNS = {"question": "prompt", "answer_zh": "rejected", "answer_en": "chosen"}
SFT_COLUMNS = {"question": "prompt", "answer": "response", "language": None}


def build_sft(folder: str | Path = FOLDER, seed: int = 0) -> dict[str, Any]:
    """Make everything that SimPO starts from; returns the summary of the SFT run."""
    folder = Path(folder)
    quiet_transformers()
    for run in (folder, folder / "sft"):
        set_aside(run)  # of a demo that was interrupted: this one begins again
    write_data(folder / "data", seed)
    tokenizer = train_tokenizer(corpus_texts())
    model = build_model(tokenizer, seed)
    logger.info("Model: %.1f M parameters, %d tokens.", model.num_parameters() / 1e6, len(tokenizer))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return train_recipe(sft_recipe(folder, seed))


def write_data(folder: Path, seed: int) -> None:
    """The rows of this seed as jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "sft.train.jsonl", sft_rows(seed, SFT.num_train_epochs))
    _write(folder / "pairs.train.jsonl", pair_rows(seed))
    _write(folder / "pairs.heldout.jsonl", pair_rows(seed, heldout=True))


def sft_recipe(folder: Path, seed: int, settings: SftSettings = SFT) -> Recipe:
    """All epochs are written out in the rows, so one pass over them is the whole run."""
    return Recipe(
        model_name_or_path=str(folder / "base"),
        dataset=str(folder / "data" / "sft.train.jsonl"),
        columns=dict(SFT_COLUMNS),
        objective="sft",
        total_batch_size=settings.total_batch_size,
        training={**_training(settings, folder / "sft", seed), "num_train_epochs": 1, "logging_steps": 50},
        origin="the demo's SFT recipe",
    )


def simpo_recipe(folder: Path, output: Path, seed: int, swap: bool = False, settings: SimpoSettings = SIMPO) -> Recipe:
    """The recipe of `training_configs/demo-simpo.yaml`, for any folder and seed; `swap`: Chinese is rejected."""
    return Recipe(
        model_name_or_path=str(folder / "sft"),
        dataset=str(folder / "data" / "pairs.train.jsonl"),
        eval_dataset=str(folder / "data" / "pairs.heldout.jsonl"),
        columns=dict(SWAPPED_COLUMNS if swap else PAIR_COLUMNS),
        objective="simpo",
        objective_args={"beta": settings.beta, "gamma_beta_ratio": settings.gamma_beta_ratio},
        sft_weight=settings.sft_weight,
        total_batch_size=settings.total_batch_size,
        training={
            **_training(settings, output, seed),
            "num_train_epochs": settings.num_train_epochs,
            "logging_steps": 5,
        },
        origin="the demo's SimPO recipe",
    )


def _training(settings: SftSettings | SimpoSettings, output: Path, seed: int) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "save_strategy": "no",
        "seed": seed,
    }


def _write(path: Path, rows: Sequence[SftRow | PairRow]) -> None:
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
