"""What the models of a bake-off on the demo's task answer: the language asked for, and right answers.

    preftune demo
    preftune bakeoff training_configs/demo-simpo.yaml max_steps=66 --seeds 0 1 2 --try learning_rate=5e-5,2e-4
    python benchmarks/bakeoff_demo.py runs/bakeoff-demo-simpo

Greedy answers to the questions about facts that are in no pair (in both languages), as the demo scores them. The mean
over seeds with the 95 % interval of that mean. Writes bakeoff-demo.json beside the other results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import report
from step import RESULTS, say

sys.path.insert(0, str(report.ROOT))

import torch

from preftune.demo.corpus import question_sets
from preftune.demo.evaluate import answer, score
from preftune.experiments.sweep import half_interval
from preftune.model.load import load_model, load_tokenizer

FIGURES = ("zh_share", "correct_zh_ref", "correct", "repetition")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the bake-off")
    parser.add_argument("--start", type=Path, default=Path("runs/demo/sft"), help="the model that all began from")
    parser.add_argument("--seed", type=int, default=0, help="of the demo, which decides the facts that are held out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    questions = question_sets(asked.seed).heldout
    found = {"start": look(asked.start, questions)}
    settings = json.loads((asked.folder / "bakeoff.json").read_text(encoding="utf-8"))["settings"]
    rows = [["start", "", *cells([found["start"]]), ""]]
    for setting in settings:
        ended = [arm for arm in setting["arms"] if arm["state"] == "done"]
        for arm in ended:
            say(arm["name"])
            found[arm["name"]] = look(asked.folder / "arms" / arm["name"] / "model", questions)
        named = setting["settings"]
        rows.append(
            [named["objective"], f"{named['learning_rate']:g}", *cells([found[arm["name"]] for arm in ended]),
             str(len(setting["arms"]) - len(ended) or "")]
        )  # fmt: skip
    print(report.markdown_table(["method", "learning rate", *FIGURES, "runs that the watch ended"], rows))
    record = {**report.describe_run("bakeoff_demo.py", argv), "questions": len(questions), "figures": found}
    (asked.out / "bakeoff-demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def look(folder: Path, questions: list) -> dict[str, float]:
    answers = answer(load_model(str(folder)), load_tokenizer(str(folder)), [question.text for question in questions])
    return score(questions, answers).to_dict()


def cells(figures: list[dict[str, float]]) -> list[str]:
    """Mean and half of its interval of each figure."""
    if not figures:
        return [""] * len(FIGURES)
    shown = []
    for name in FIGURES:
        values = [one[name] for one in figures]
        half = half_interval(values) if len(values) > 1 else None
        shown.append(f"{statistics.fmean(values):.3f}" + ("" if half is None else f" ± {half:.3f}"))
    return shown


if __name__ == "__main__":
    main()
