"""How many of the labels that were flipped on purpose does an autopsy find, and what does retraining without them gain?

For each seed a set of real pairs (answers with and without emoji) is cut into rows to train on and rows to hold out,
and a tenth of the former are turned around. A small language model is trained on all of it with SimPO, and its autopsy
is held against what was flipped: precision (of the listed pairs, how many are flipped) and recall (of the flipped ones,
how many are listed), beside chance and beside the same number of pairs with the highest loss at their last visit. Then
the same model is trained anew, by the same recipe, on what is left after `--drop`, after dropping as many rows at
random, after dropping as many with the highest loss, and on the data without what was flipped. Nobody has flipped the
held-out ones.

    PREFTUNE_TEST_DATA=... python benchmarks/autopsy.py [--seeds 0 1 2] [--out benchmarks/results/autopsy] [--page]

Writes `OUT.json` and `OUT.md` (from the JSON alone with --page; --join puts runs of one seed each together). One core,
about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from preftune.autopsy import Autopsy, examine
from preftune.autopsy.clean import write_clean
from preftune.autopsy.examine import DROPS
from preftune.recipe import load_recipe
from preftune.train import margins as recording
from preftune.train.run import quiet_transformers, train_recipe

FILES = ("dpo_emoji_english_gpt.train.jsonl", "dpo_emoji_english_gpt.eval.jsonl")
HELD_OUT, FLIPPED = 120, 0.1  # pairs, at least, and a share of the others
SETTINGS = {
    "objective": "simpo",
    "torch_dtype": "float32",
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "total_batch_size": 16,
    "max_length": 256,
    "logging_steps": 10,
    "save_strategy": "no",
    "rescue_minutes": 0,
    "watch": False,
    "eval_strategy": "no",
    "do_eval": True,
    "report_to": "none",
}
DROP = ("never", "flip", "contradict")  # all lists but that of length, which belongs to these data
MEASURES = ("eval_rewards/accuracies", "eval_rewards/margins", "eval_loss")


def read() -> list[dict[str, Any]]:
    folder = Path(os.environ["PREFTUNE_TEST_DATA"]) / "preferences/emoji"
    return [json.loads(line) for name in FILES for line in (folder / name).open(encoding="utf-8")]


def split(rows: Sequence[dict[str, Any]], draw: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is trained on and what is held out: whole prompts, at least HELD_OUT rows."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"][-1]["content"], []).append(row)
    groups = list(by_prompt.values())
    draw.shuffle(groups)
    held_out: list[dict[str, Any]] = []
    while len(held_out) < HELD_OUT:
        held_out += groups.pop()
    return [row for group in groups for row in group], held_out


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def train(folder: Path, name: str, data: Path, seed: int, record: bool = False) -> dict[str, float]:
    """One run; what it reaches on held-out pairs, its rows, and its seconds."""
    model = str(Path(os.environ["PREFTUNE_TEST_DATA"]) / "models/stories260K-llama")
    own = {
        "model_name_or_path": model,
        "dataset": str(data),
        "eval_dataset": str(folder / "heldout.jsonl"),
        "seed": seed,
    }
    summary = train_recipe(
        load_recipe(None, {**SETTINGS, **own, "record_margins": record, "output_dir": str(folder / name)})
    )
    found = {measure: summary["metrics"][measure] for measure in MEASURES}
    figures = {"rows": summary["rows"], "seconds": summary["train_seconds"], **found}
    print(f"seed {seed}, {name}: {figures}", file=sys.stderr, flush=True)
    return figures


def one_seed(folder: Path, seed: int) -> dict[str, Any]:
    draw = random.Random(f"flip {seed}")
    rows, held_out = split(read(), draw)
    flipped = set(draw.sample(range(len(rows)), round(FLIPPED * len(rows))))
    noisy = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if place in flipped else row
        for place, row in enumerate(rows)
    ]
    write(folder / "noisy.jsonl", noisy)
    write(folder / "heldout.jsonl", held_out)
    spent = Spent()
    arms = {"all rows": train(folder, "noisy", folder / "noisy.jsonl", seed, record=True)}
    share = spent.seconds / arms["all rows"]["seconds"]
    began = time.perf_counter()
    found = examine(folder / "noisy")
    seconds = time.perf_counter() - began
    by_loss = [pair.row - 1 for pair in sorted(found.pairs, key=lambda pair: pair.last)]
    lists = listed(found)
    output = folder / "dropped.jsonl"
    report = write_clean(found, DROP, output)
    count = report["rows"] - report["kept"]
    arms[f"--drop {','.join(DROP)}"] = train(folder, "dropped", output, seed)
    others = {"as many dropped at random": draw.sample(range(len(rows)), count)}
    others["as many dropped by loss"] = by_loss[:count]
    for name, gone in others.items():
        path = folder / f"{name}.jsonl"
        write(path, [row for place, row in enumerate(noisy) if place not in set(gone)])
        arms[name] = train(folder, path.stem, path, seed)
    write(folder / "clean.jsonl", [row for place, row in enumerate(rows) if place not in flipped])
    arms["without the flipped"] = train(folder, "clean", folder / "clean.jsonl", seed)
    return {
        "seed": seed,
        "rows": len(rows),
        "held_out": len(held_out),
        "flipped": len(flipped),
        "detection": {name: detection(own, by_loss, flipped, len(rows)) for name, own in lists.items()},
        "average_precision": {
            "loss at the last visit": average_precision(by_loss, flipped),
            "mean margin": average_precision([pair.row - 1 for pair in found.pairs], flipped),
        },
        "length_explained": found.length.explained,
        "recording_share": share,
        "autopsy_seconds": seconds,
        "arms": arms,
    }


def listed(found: Autopsy) -> dict[str, set[int]]:
    """Places in the file of the rows of each list, and of what --drop leaves out."""
    lists = {name: {found.pairs[n].row - 1 for n in own} for name, own in found.lists.items()}
    dropped = set().union(*(lists[DROPS[word]] for word in DROP))
    return {**lists, f"--drop {','.join(DROP)}": dropped}


def detection(own: set[int], by_loss: Sequence[int], flipped: set[int], rows: int) -> dict[str, float]:
    hits, loss_hits = len(own & flipped), len(set(by_loss[: len(own)]) & flipped)
    count = max(len(own), 1)
    return {
        "listed": len(own),
        "precision": hits / count,
        "recall": hits / len(flipped),
        "chance_precision": len(flipped) / rows,
        "chance_recall": len(own) / rows,
        "loss_precision": loss_hits / count,
        "loss_recall": loss_hits / len(flipped),
    }


def average_precision(order: Sequence[int], flipped: set[int]) -> float:
    """The mean, over the flipped ones, of the precision down to each."""
    hits, total = 0, 0.0
    for place, row in enumerate(order, start=1):
        if row in flipped:
            hits += 1
            total += hits / place
    return total / len(flipped)


class Spent:
    """Seconds that the recording of margins takes, of runs from here on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("open", "add", "flush"):
            original = getattr(recording.MarginLog, name)
            setattr(recording.MarginLog, name, self._timed(getattr(original, "timed", original)))

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        call.timed = original  # type: ignore[attr-defined]
        return call


# --- the page


def page(result: dict[str, Any]) -> str:
    seeds = result["seeds"]
    first = seeds[0]
    precise = {name: [one["average_precision"][name] for one in seeds] for name in first["average_precision"]}
    ranked = "; ".join(f"by {name} {fmean(values):.0%}" for name, values in precise.items())
    keys = ("learning_rate", "num_train_epochs", "total_batch_size")
    settings = ", ".join(f"{key} {SETTINGS[key]:g}" for key in keys)
    return f"""# Autopsy: labels flipped on purpose

`{result["command"]}`{", a run for each seed" if result.get("joined") else ""}, commit
{result["commit"]}, {result["machine"]}; {result["seconds"] / 60:.0f} minutes.

{first["rows"]} pairs of `dpo_emoji_english_gpt` (the better answer has emoji), of which {first["flipped"]} were turned
around; {first["held_out"]} held-out pairs as they were. stories260K-llama (0.26 million parameters), SimPO, {settings}.
Seeds {", ".join(str(one["seed"]) for one in seeds)}: what is held out, flips, order of the data and all other draws.
Means over seeds, with the standard deviation where it says ±.

## What the lists find

Precision: of the listed pairs, how many are flipped. Recall: of the flipped pairs, how many are listed. Loss: as many
pairs as the list has, those with the highest loss at their last visit.

| list | pairs | precision | recall | chance: precision / recall | loss: precision / recall |
|---|---|---|---|---|---|
{_detected(seeds)}

Average precision of a ranking of all pairs (chance: {FLIPPED:.0%}): {ranked}.

## What retraining gains

Accuracy: share of the held-out pairs in order under the run's own implicit reward, in percent; one pair is
{100 / first["held_out"]:.2f}. Gain: over all rows with the same seed.

| trained on | rows | accuracy % | gain | margin | loss |
|---|---|---|---|---|---|
{_trained(seeds)}

## What it costs

Recording the margins took {fmean(one["recording_share"] for one in seeds):.2%} of the training time; the autopsy
{fmean(one["autopsy_seconds"] for one in seeds):.1f} seconds. Differences in length explain
{fmean(one["length_explained"] for one in seeds):.0%} of the variance of the last margins.
"""


def _detected(seeds: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in seeds[0]["detection"]:
        own = [one["detection"][name] for one in seeds]
        cells = [name, f"{fmean(one['listed'] for one in own):.0f}", _mean(own, "precision"), _mean(own, "recall")]
        cells += [f"{_mean(own, f'{what}_precision')} / {_mean(own, f'{what}_recall')}" for what in ("chance", "loss")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _trained(seeds: Sequence[dict[str, Any]]) -> str:
    lines, base = [], [one["arms"]["all rows"]["eval_rewards/accuracies"] for one in seeds]
    for name in seeds[0]["arms"]:
        own = [one["arms"][name] for one in seeds]
        right = [arm["eval_rewards/accuracies"] for arm in own]
        gains = [100 * (one - other) for one, other in zip(right, base, strict=True)]
        cells = [name, f"{fmean(arm['rows'] for arm in own):.0f}", _spread([100 * one for one in right])]
        cells += [_spread(gains, sign=True), _spread([arm["eval_rewards/margins"] for arm in own])]
        lines.append(f"| {' | '.join([*cells, _spread([arm['eval_loss'] for arm in own], 3)])} |")
    return "\n".join(lines)


def _mean(own: Sequence[dict[str, float]], key: str) -> str:
    return f"{fmean(one[key] for one in own):.0%}"


def _spread(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{'+' if sign else ''}.{digits}f}{around}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="benchmarks/results/autopsy")
    parser.add_argument("--page", action="store_true", help="write the page again from the JSON")
    parser.add_argument("--join", nargs="+", metavar="JSON", help="make one result of several, each of other seeds")
    options = parser.parse_args()
    record = Path(f"{options.out}.json")
    if options.join:
        _save(record, join([json.loads(Path(name).read_text(encoding="utf-8")) for name in options.join]))
    elif not options.page:
        quiet_transformers()
        logging.getLogger("preftune").setLevel(logging.ERROR)
        began = time.perf_counter()
        seeds = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                seeds.append(one_seed(Path(folder), seed))
            print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        result = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit.stdout.strip(),
            "machine": f"one core of {processor()}",
            "seconds": round(time.perf_counter() - began),
            "settings": SETTINGS,
            "seeds": seeds,
        }
        _save(record, result)
    Path(f"{options.out}.md").write_text(page(json.loads(record.read_text(encoding="utf-8"))), encoding="utf-8")


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs of the same settings and commit, with other seeds."""
    first = parts[0]
    assert all((part["settings"], part["commit"]) == (first["settings"], first["commit"]) for part in parts)
    seeds = [one for part in parts for one in part["seeds"]]
    said = shlex.join(["python", "benchmarks/autopsy.py", "--seeds", *(str(one["seed"]) for one in seeds)])
    return {
        **first,
        "joined": len(parts),
        "command": said,
        "seconds": sum(part["seconds"] for part in parts),
        "seeds": seeds,
    }


def _save(record: Path, result: dict[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
