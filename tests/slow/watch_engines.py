"""Watched runs of a small float32 model under one engine, in as many processes as it is started with.

python -m torch.distributed.run --nproc_per_node N tests/slow/watch_engines.py FOLDER ENGINE [failing]

Leaves in FOLDER one folder a run with its final model and `figures.json`: the log lines of its looks, and what the
watch says at the end.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from preftune.errors import CollapseError
from preftune.train.watch import callback, look, watch_collapse
from preftune.train.watch.verdict import signs_of
from tests.slow.engines import RUNS, arguments, build_trainer, let_fsdp_run_on_cpu, save_models

SAVING = {"save_strategy": "steps", "save_steps": 2}
RUINOUS = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 1e3}


@dataclass(frozen=True)
class Watched:
    run: str
    action: str | None = "warn"  # None: not watched
    changes: dict[str, Any] = field(default_factory=dict)  # of the arguments
    ill_from: int | None = None  # a step from which on signs are found, whatever the figures


WATCHED = {
    "simpo": Watched("simpo", changes={"learning_rate": 3e-3}),
    "simpo-alone": Watched("simpo", None, {"learning_rate": 3e-3}),
    "lora": Watched("lora", changes={"learning_rate": 3e-2}),
    "ruinous": Watched("dpo", "stop", RUINOUS),
    "rollback": Watched("dpo", "rollback", SAVING, ill_from=3),
}


def main(folder: Path, engine: str, failing: bool) -> None:
    if engine == "fsdp2":
        let_fsdp_run_on_cpu()
    models = save_models(folder)
    look.ANSWER_TOKENS = 12  # of a look under ZeRO-3 on a CPU each takes a tenth of a second
    if failing:
        fail_in_the_second_process()
    for name in ["simpo"] if failing else WATCHED:
        train(WATCHED[name], folder / name, engine, models)
    dist.barrier()
    dist.destroy_process_group()


def train(watched: Watched, folder: Path, engine: str, models: Path) -> None:
    trainer = build_trainer(RUNS[watched.run], arguments(folder, engine, **watched.changes), models)
    watch = watched.action and watch_collapse(trainer, prompts=5, steps=2, action=watched.action)
    usual, callback.signs_of = callback.signs_of, ill_from(trainer, watched.ill_from) if watched.ill_from else signs_of
    said = ""
    try:
        trainer.train()
    except CollapseError as cause:
        said = str(cause)
    finally:
        callback.signs_of = usual
    if watch:
        watch.settle()
    trainer.save_model()
    if trainer.is_world_process_zero():
        looks = [line for line in trainer.state.log_history if "watch/kl" in line]
        figures = {"looks": looks, "said": said, "watch": watch.summary(1.0) if watch else None}
        (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


def ill_from(trainer: Any, step: int) -> Any:
    def signs(start: Any, now: Any, settings: Any, best_chosen: Any) -> Any:
        ill = replace(now, chosen=start.chosen - 100)
        return signs_of(start, ill, settings) if trainer.state.global_step >= step else []

    return signs


def fail_in_the_second_process() -> None:
    """At its third batch of answers, which is that of step 2."""
    usual, count = look.sample, iter(range(99))

    def sample(*given: Any) -> Any:
        if next(count) == 2 and os.environ["RANK"] == "1":
            raise MemoryError("no more")
        return usual(*given)

    look.sample = sample


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "failing" in sys.argv[3:])
