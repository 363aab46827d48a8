"""Rounds of on-policy training: sample from the last model, score, pair, train; and measure fresh answers each time.

Every step is one of our verbs in a process of its own, so that its memory is free when the next begins and anyone can
run it by hand. All of them go on where they were killed; `steps.json` says which are done.

    output_dir/start/      fresh.jsonl fresh-scored.jsonl                 answers of the model before any round
    output_dir/round-1/    samples.jsonl scored.jsonl pairs/ recipe.yaml model/  fresh.jsonl fresh-scored.jsonl
    output_dir/rounds.md   rounds.json                                    reward, length and accuracy of each round
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import CheckpointError, TrainingError
from preftune.onpolicy.plan import OnPolicy

log = logging.getLogger(__name__)
FRESH_SEED = 1  # of the answers that are measured: none of those that are trained on
PORT = 29761


@dataclass(frozen=True)
class Step:
    """One command: its name in the record, the verb with its words, and whether processes share it."""

    name: str
    words: tuple[str, ...]
    shared: bool = False


def run_rounds(plan: OnPolicy) -> list[dict[str, Any]]:
    """Do what is left of the rounds; returns the table's rows, the start first.

    Raises:
        TrainingError: a step failed; it has said why.
        CheckpointError: a step was done with other settings.
    """
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    record = _Record(plan.output_dir / "steps.json")
    rows: list[dict[str, Any]] = []
    for number in range(plan.rounds + 1):
        folder = plan.output_dir / ("start" if number == 0 else f"round-{number}")
        folder.mkdir(exist_ok=True)
        for step in steps(plan, number, folder):
            record.do(step, plan.nproc if step.shared else 1)
        rows.append(_row(folder, number, plan.output_dir / "start"))
        _write_table(plan.output_dir, rows)
    return rows


def steps(plan: OnPolicy, number: int, folder: Path) -> Iterator[Step]:
    """The commands of a round; round 0 only measures the start."""
    name = folder.name
    model = plan.model_name_or_path
    if number:
        before = model if number == 1 else str(folder.with_name(f"round-{number - 1}") / "model")
        samples, scored, pairs = folder / "samples.jsonl", folder / "scored.jsonl", folder / "pairs"
        yield _sample(f"{name} sample", before, plan.prompts, samples, plan.sample)
        yield _annotate(f"{name} annotate", samples, scored, plan.annotate)
        yield Step(f"{name} pairs", ("pairs", str(scored), "--output", str(pairs), *flags(plan.pairs)))
        recipe, model = folder / "recipe.yaml", str(folder / "model")
        _write_recipe(recipe, {**plan.train, "model_name_or_path": before, "output_dir": model}, pairs)
        yield Step(f"{name} train", ("train", str(recipe), "resume_from_checkpoint=auto"), shared=True)
    fresh = {**plan.sample, "seeds": [FRESH_SEED]}
    yield _sample(f"{name} fresh", model, plan.eval_prompts or plan.prompts, folder / "fresh.jsonl", fresh)
    yield _annotate(f"{name} measure", folder / "fresh.jsonl", folder / "fresh-scored.jsonl", plan.annotate)


def _sample(name: str, model: str, prompts: Sequence[str], out: Path, options: Mapping[str, Any]) -> Step:
    return Step(name, ("sample", model, *prompts, "--output", str(out), *flags(options)), shared=True)


def _annotate(name: str, rows: Path, out: Path, options: Mapping[str, Any]) -> Step:
    return Step(name, ("annotate", str(rows), "--output", str(out), *flags(options)))


def flags(options: Mapping[str, Any]) -> list[str]:
    """`{max_tokens: 512, seeds: [1, 2], x: true}` -> `--max-tokens 512 --seeds 1 2 --x`; false and null: none."""
    words = []
    for key, value in options.items():
        if value is None or value is False:
            continue
        words.append("--" + key.replace("_", "-"))
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [str(one) for one in values]
    return words


def _write_recipe(path: Path, settings: dict[str, Any], pairs: Path) -> None:
    """The recipe that the round trains by; pairs that were held out are evaluated on."""
    settings["dataset"] = str(pairs / "train.jsonl")
    if (pairs / "test.jsonl").is_file() and (pairs / "test.jsonl").stat().st_size:
        settings["eval_dataset"] = str(pairs / "test.jsonl")
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


class _Record:
    """The steps that are done, with the command of each and the seconds it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def do(self, step: Step, processes: int) -> None:
        """Run a step, unless it is done.

        Raises:
            TrainingError: it failed.
            CheckpointError: it was done by another command.
        """
        said = shlex.join(["preftune", *step.words])
        if step.name in self.done:
            before = self.done[step.name]["command"]
            if before != said:
                raise CheckpointError(
                    f"{self.path.parent}: the step '{step.name}' was done by `{before}`, and would be `{said}` now. "
                    "Set the recipe back, or give another output_dir."
                )
            return
        log.info("%s: %s", step.name, said)
        started = time.monotonic()
        code = subprocess.run(_launch(step.words, processes), env=_environment(), check=False).returncode
        if code:
            raise TrainingError(
                f"The step '{step.name}' ended with exit code {code}; its own line above says why. When that is "
                f"mended, the same command goes on from there. The step alone: {said}"
            )
        self.done[step.name] = {"command": said, "seconds": round(time.monotonic() - started, 1)}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.path)


def _launch(words: Sequence[str], processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "preftune", *words]
    launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(PORT)]
    return [sys.executable, "-m", *launcher, "-m", "preftune", *words]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


# --- the table


def _row(folder: Path, number: int, start: Path) -> dict[str, Any]:
    """What is known of a round: `reward` and the rest are of fresh answers of its model."""
    scored = _scored(folder / "fresh-scored.jsonl")
    first = _scored(start / "fresh-scored.jsonl")
    both = [(scored[name], first[name]) for name in scored.keys() & first.keys()]
    values = list(scored.values())
    row: dict[str, Any] = {
        "round": number,
        "reward": sum(score for score, _ in values) / max(len(values), 1),
        "tokens": sum(tokens for _, tokens in values) / max(len(values), 1),
        "answers": len(values),
        "over_start": sum((a > b) + (a == b) / 2 for (a, _), (b, _) in both) / max(len(both), 1),
    }
    if number:
        report = json.loads((folder / "pairs" / "pairs-report.json").read_text("utf-8"))
        metrics = json.loads((folder / "model" / "summary.json").read_text("utf-8"))["metrics"]
        row |= {"pairs": report["kept"], "accuracy": metrics.get("eval_rewards/accuracies")}
    return row


def _scored(path: Path) -> dict[str, tuple[float, float]]:
    """Of each prompt the score and the length of its fresh answer; those without a score are left out."""
    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["scores"][0] is not None:
                found[row["prompt_id"]] = float(row["scores"][0]), float(row["sampled"]["tokens"][0])
    return found


def _write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / "rounds.json").write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    (folder / "rounds.md").write_text(table(rows), encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rounds as a Markdown table."""
    lines = [
        "| round | mean reward | better than the start's | tokens of an answer | answers | pairs | held-out accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = row.get("accuracy")
        cells = [
            str(row["round"] or "start"),
            f"{row['reward']:.4g}",
            f"{row['over_start']:.1%}" if row["round"] else "",
            f"{row['tokens']:.1f}",
            str(row["answers"]),
            str(row.get("pairs", "")),
            "" if accuracy is None else f"{accuracy:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
