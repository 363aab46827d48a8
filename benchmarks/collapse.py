"""Does the collapse watch see a model die, in time, and does it keep quiet while one is well?

For each seed a small SFT model of the demo's facts is made (its own split, weights and order), and from it a healthy
and a collapsing run for each of three objectives, one that does quiet damage and one that a high rate leaves well.
While they run, and independently of the watch, held-out questions are asked greedily: `correct` is the demo's, and a
model is damaged from the step on at which fewer than 80 % of the answers are right that were right at the start.

    python benchmarks/collapse.py [--seeds 0 1 2 3 4] [--out benchmarks/results/collapse] [--page]

Writes `OUT.json` (every run) and `OUT.md` (the table). One core, about 20 minutes of CPU time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback

from preftune.demo.build import sft_recipe, simpo_recipe, write_data
from preftune.demo.corpus import corpus_texts, question_sets
from preftune.demo.evaluate import answer, score
from preftune.demo.model import build_model
from preftune.demo.settings import SFT, ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.recipe import Recipe
from preftune.train.record import read_log
from preftune.train.run import quiet_transformers, train_recipe

SIZES = ModelSettings(hidden_size=128, intermediate_size=352, num_hidden_layers=2)  # 0.66 million parameters
SFT_RATE = 2e-3
ASKED, ASK_EVERY = 60, 5  # held-out questions, and the steps between two times they are asked
DAMAGED = 0.8  # of the answers that were right at the start
OWN = {"simpo": {"beta": 2.0, "gamma_beta_ratio": 0.5}, "dpo": {"beta": 0.1}, "cpo": {"beta": 0.1}, "ipo": {"tau": 0.1}}
RUNS = (  # objective, what it is to show, learning rate, epochs, sft_weight
    ("simpo", "healthy", 5e-5, 1, 1.0),
    ("simpo", "collapsing", 3e-4, 2, 0.0),
    ("simpo", "quiet damage", 1e-4, 2, 0.0),
    ("dpo", "healthy", 5e-5, 1, 0.0),
    ("dpo", "collapsing", 3e-4, 2, 0.0),
    ("cpo", "healthy", 5e-5, 1, 1.0),
    ("cpo", "collapsing", 1e-3, 2, 0.0),
    ("ipo", "healthy, at a high rate", 3e-4, 2, 0.0),
)


class AskWhileTraining(TrainerCallback):
    """(step, share of right answers) to held-out questions, the start's first."""

    def __init__(self, seed: int) -> None:
        questions = question_sets(seed).heldout
        self.questions = questions[:: max(1, len(questions) // ASKED)]
        self.found: list[tuple[int, float]] = []

    def ask(self, step: int, model: Any, tokenizer: Any) -> None:
        answers = answer(model, tokenizer, [question.text for question in self.questions])
        self.found.append((step, score(self.questions, answers).correct))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ask(0, kwargs["model"], kwargs["processing_class"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % ASK_EVERY == 0 or state.global_step == state.max_steps:
            self.ask(state.global_step, kwargs["model"], kwargs["processing_class"])

    def damaged_at(self) -> int | None:
        at_start = self.found[0][1]
        return next((step for step, correct in self.found if correct < DAMAGED * at_start), None)


def build_start(folder: Path, seed: int) -> None:
    """Data, base model and SFT model of a seed."""
    write_data(folder / "data", seed)
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed, sizes=SIZES).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    train_recipe(sft_recipe(folder, seed, replace(SFT, learning_rate=SFT_RATE)))


def recipe_of(folder: Path, output: Path, seed: int, objective: str, rate: float, epochs: int, term: float) -> Recipe:
    base = simpo_recipe(folder, output, seed)
    return replace(
        base,
        objective=objective,
        objective_args=dict(OWN[objective]),
        sft_weight=term,
        training={**base.training, "learning_rate": rate, "num_train_epochs": epochs},
    )


def run(folder: Path, seed: int, objective: str, kind: str, rate: float, epochs: int, term: float) -> dict[str, Any]:
    """One watched run: what happened to the model, and what the watch said when."""
    output, asking = folder / f"{objective}-{kind}".replace(" ", "-"), AskWhileTraining(seed)
    summary = train_recipe(recipe_of(folder, output, seed, objective, rate, epochs, term), callbacks=[asking])
    looks = read_log(output / "watch.jsonl")
    alarm = next((look for look in looks if look["signs"]), None)
    return {
        "seed": seed,
        "objective": objective,
        "kind": kind,
        "settings": f"{rate:.0e} x {epochs}, sft_weight {term:g}",
        "steps": summary["steps"],
        "loss": summary["metrics"]["loss"],
        "margin": summary["metrics"]["rewards/margins"],
        "correct": asking.found,
        "damaged_at": asking.damaged_at(),
        "alarm_at": None if alarm is None else alarm["step"],
        "signs": [] if alarm is None else alarm["signs"],
        "looks": [{key: value for key, value in look.items() if key != "answers"} for look in looks],
        "watch_seconds": summary["watch"]["seconds"],
        "train_seconds": summary["train_seconds"],
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    head = (
        "| objective | setting | runs | damaged | alarms | first alarm at step | damaged at step | of steps "
        "| right answers, start -> end | loss at the end | first signs |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(_row(runs, objective, kind) for objective, kind, *_ in RUNS)])


def _row(runs: Sequence[dict[str, Any]], objective: str, kind: str) -> str:
    own = [one for one in runs if (one["objective"], one["kind"]) == (objective, kind)]
    damaged = [one["damaged_at"] for one in own if one["damaged_at"] is not None]
    alarms = [one["alarm_at"] for one in own if one["alarm_at"] is not None]
    first, last = (sum(one["correct"][place][1] for one in own) / len(own) for place in (0, -1))
    losses = sum(one["loss"] for one in own) / len(own)
    signs = ", ".join(sorted({sign for one in own for sign in one["signs"]})) or "-"
    cells = [objective, f"{kind}: {own[0]['settings']}", len(own), len(damaged), len(alarms), _range(alarms)]
    cells += [_range(damaged), own[0]["steps"], f"{first:.2f} -> {last:.2f}", f"{losses:.3f}", signs]
    return f"| {' | '.join(map(str, cells))} |"


def _range(steps: Sequence[int]) -> str:
    return f"{median(steps):g} ({min(steps)} to {max(steps)})" if steps else "-"


def page(runs: Sequence[dict[str, Any]]) -> str:
    damaged = [one for one in runs if one["damaged_at"] is not None]
    well = [one for one in runs if one["damaged_at"] is None]
    hits = [one for one in damaged if one["alarm_at"] is not None]
    false = [one for one in well if one["alarm_at"] is not None]
    lag = [one["alarm_at"] - one["damaged_at"] for one in hits]
    left = [one["steps"] - one["alarm_at"] for one in hits]
    at_once = [one for one in hits if one["alarm_at"] <= _next_look(one)]
    training = sum(one["train_seconds"] for one in runs)
    watching = sum(one["watch_seconds"] for one in runs) / training
    seeds = ", ".join(map(str, sorted({one["seed"] for one in runs})))
    return f"""# Collapse watch: hits and false alarms

`benchmarks/collapse.py`, seeds {seeds}: {len(runs)} runs, {training / 60:.0f} minutes on one core of a busy machine.
A model is damaged from the step on at which fewer than 80 % of its right answers to {ASKED} held-out questions are
left, asked every {ASK_EVERY} steps; the watch answers 16 held-out prompts every tenth of a run, at least ten steps
apart.
Steps are medians (least to most), the loss is the mean of the last log line.

{table(runs)}

* Damaged runs that were warned of: {len(hits)} of {len(damaged)}, of these {len(at_once)} before the damage or at the
  first look after it. False alarms: {len(false)} of {len(well)} runs that stay well.
* The first alarm comes {_range(lag)} steps after the damage (negative: before it), with {_range(left)} steps of the
  run to go. A collapse takes fewer steps than lie between two looks: to see it sooner, set `watch_steps`.
* The loss at the end is lowest where the model is dead.
* The watch takes {watching:.1%} of the training time here, where a step is as small as the model (0.66 million
  parameters). Of `preftune demo` (3.7 million, seed 0, no alarm) it takes 3 % in the SFT and 6 % in the SimPO stage.

The limits (`preftune/train/watch/verdict.py`) were set on seed 100, which is in no line of this page. They were not
tried on a language model: what this one knows it knows by heart, so its chosen responses have 0.07 nats per token at
the start, where those of a language model have about one.
"""


def _next_look(one: dict[str, Any]) -> int:
    """The step of the first look at or after the damage."""
    return next(look["step"] for look in one["looks"] if look["step"] >= one["damaged_at"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/collapse"))
    parser.add_argument("--page", action="store_true", help="write the page of OUT.json again, and run nothing")
    options = parser.parse_args()
    quiet_transformers()
    logging.getLogger("preftune").setLevel(logging.ERROR)
    runs: list[dict[str, Any]] = []
    if options.page:
        runs = json.loads(options.out.with_suffix(".json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        for seed in () if options.page else options.seeds:
            folder = Path(work) / str(seed)
            build_start(folder, seed)
            for objective, kind, *settings in RUNS:
                runs.append(run(folder, seed, objective, kind, *settings))
                shown = {key: runs[-1][key] for key in ("seed", "objective", "kind", "damaged_at", "alarm_at", "signs")}
                print(json.dumps(shown), flush=True)
            options.out.with_suffix(".json").write_text(json.dumps(runs) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
