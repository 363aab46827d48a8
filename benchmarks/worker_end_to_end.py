"""One side of end_to_end.py: its own trainer, from text rows to the end of `train()`; prints JSON.

`preftune` runs in the project's environment, `trl` (CPOTrainer, loss_type "simpo", cpo_alpha 0) in that of the peers.
Rows come in one order for both: preftune shuffles train.jsonl, TRL reads ordered.jsonl, which is shuffled alike, as it
stands. What is TRL's default and not named here stays so, but for gradient checkpointing, which is off on both sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from protocol import claim_stdout, installed_versions
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, set_seed
from workload import BETA, GAMMA

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "trl", "preftune")
ACCURACY = "eval_rewards/accuracies"


class Clock(TrainerCallback):
    """Seconds of training, which stand still during evaluations; a point of the curve for each of these."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float, float]] = []
        self.started = self.stopped = self.paused = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and ACCURACY in logs:
            self.curve.append((state.global_step, self.stopped - self.started - self.paused, logs[ACCURACY]))

    def around(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """`evaluate`, with the clock stopped."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.stopped = time.perf_counter()
            found = evaluate(*args, **kwargs)
            self.paused += time.perf_counter() - self.stopped
            return found

        return timed


def training_arguments(recipe: dict) -> dict[str, Any]:
    """What both sides are told in the same words."""
    return {
        "output_dir": recipe["scratch"],
        "per_device_train_batch_size": recipe["batch"],
        "per_device_eval_batch_size": recipe["batch"],
        "learning_rate": recipe["learning_rate"],
        "lr_scheduler_type": recipe["schedule"],
        "warmup_steps": recipe["warmup_steps"],
        "eval_strategy": "steps",
        "eval_steps": recipe["eval_steps"],
        "logging_steps": recipe["eval_steps"],
        "save_strategy": "no",
        "report_to": "none",
        "bf16": recipe["precision"] == "bf16",
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "seed": recipe["seed"],
    }


def build_preftune(model: Any, tokenizer: Any, recipe: dict, folder: Path) -> Trainer:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from preftune import PreferenceTrainer, load_objective
    from preftune.train.arguments import PreferenceArguments

    return PreferenceTrainer(
        model,
        PreferenceArguments(num_train_epochs=recipe["epochs"], **training_arguments(recipe)),
        objective=load_objective("simpo", beta=BETA, gamma_beta_ratio=GAMMA / BETA),
        train_dataset=read_lines(folder / "train.jsonl"),
        eval_dataset=read_lines(folder / "eval.jsonl"),
        max_length=recipe["max_length"],
        processing_class=tokenizer,
    )


def build_trl(model: Any, tokenizer: Any, recipe: dict, folder: Path) -> Trainer:
    import datasets
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    arguments = CPOConfig(
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=BETA,
        simpo_gamma=GAMMA,
        max_length=recipe["max_length"],
        num_train_epochs=1,  # ordered.jsonl holds all epochs
        train_sampling_strategy="sequential",
        **training_arguments(recipe),
    )
    return CPOTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(read_lines(folder / "ordered.jsonl")),
        eval_dataset=datasets.Dataset.from_list(read_lines(folder / "eval.jsonl")),
        processing_class=tokenizer,
    )


def read_lines(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:  # splitlines would also cut at a U+2028 inside a text
        return [json.loads(line) for line in file]


def count_tokens(trainer: Trainer, epochs: int) -> int:
    """Tokens of the rows of all epochs, each sequence with its prompt; to see that both sides do the same work."""
    rows = trainer.train_dataset
    if hasattr(rows, "column_names"):
        return sum(len(ids) for column in ("chosen_input_ids", "rejected_input_ids") for ids in rows[column])
    return epochs * sum(len(row.prompt_ids) + len(ids) for row in rows for ids in row.response_ids)


SIDES = {"preftune": build_preftune, "trl": build_trl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=tuple(SIDES), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--recipe", type=json.loads, required=True)
    asked = parser.parse_args()
    answers = claim_stdout()
    recipe = {**asked.recipe, "scratch": str(asked.folder / f"out-{asked.side}")}
    torch.set_num_threads(recipe["threads"])
    set_seed(recipe["seed"])
    model = AutoModelForCausalLM.from_pretrained(asked.folder / "start", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked.folder / "start")
    began = time.perf_counter()
    trainer = SIDES[asked.side](model, tokenizer, recipe, asked.folder)
    prepared = time.perf_counter() - began
    clock = Clock()
    trainer.add_callback(clock)
    trainer.evaluate = clock.around(trainer.evaluate)  # type: ignore[method-assign]
    trainer.train()
    found = {
        "prepare_seconds": prepared,
        "train_seconds": time.perf_counter() - clock.started - clock.paused,
        "curve": clock.curve,
        "tokens": count_tokens(trainer, recipe["epochs"]),
        "versions": installed_versions(PACKAGES),
    }
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
