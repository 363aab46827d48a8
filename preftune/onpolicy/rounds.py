"""Rounds of on-policy training: sample from the last model, score, pair, train; and measure fresh answers each time.

Every step is one of our verbs in a process of its own, so that its memory is free when the next begins and anyone can
run it by hand. All of them go on where they were killed; `steps.json` says which are done (`preftune.onpolicy.steps`).

    output_dir/start/      fresh.jsonl fresh-scored.jsonl                 answers of the model before any round
    output_dir/round-1/    samples.jsonl scored.jsonl pairs/ recipe.yaml model/  fresh.jsonl fresh-scored.jsonl
    output_dir/rounds.md   rounds.json                                    reward, length and accuracy of each round
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.onpolicy.plan import OnPolicy
from preftune.onpolicy.steps import Record, Step

log = logging.getLogger(__name__)
FRESH_SEED = 1  # of the answers that are measured: none of those that are trained on


def run_rounds(plan: OnPolicy) -> list[dict[str, Any]]:
    """Do what is left of the rounds; returns the table's rows, the start first.

    Raises:
        TrainingError: a step failed; it has said why.
        CheckpointError: a step was done with other settings.
        Interrupted: by Ctrl-C or SIGTERM, which the step in hand has been given; the same call goes on.
    """
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    record = Record(plan.output_dir / "steps.json")
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
        model = str(folder / "model")
        recipe = _recipe({**plan.train, "model_name_or_path": before, "output_dir": model}, pairs)
        words = ("train", str(folder / "recipe.yaml"), "resume_from_checkpoint=auto")
        yield Step(f"{name} train", words, shared=True, recipe=recipe)
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


def _recipe(settings: dict[str, Any], pairs: Path) -> str:
    """The recipe that the round trains by; pairs that were held out are evaluated on."""
    settings["dataset"] = str(pairs / "train.jsonl")
    if (pairs / "test.jsonl").is_file() and (pairs / "test.jsonl").stat().st_size:
        settings["eval_dataset"] = str(pairs / "test.jsonl")
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


# --- the table


def _row(folder: Path, number: int, start: Path) -> dict[str, Any]:
    """What is known of a round: `reward` and the rest are of fresh answers of its model; None is not known."""
    scored, first = (_scored(place / "fresh-scored.jsonl") for place in (folder, start))
    both = [(scored[name][0], first[name][0]) for name in scored.keys() & first.keys()]
    row: dict[str, Any] = {
        "round": number,
        "reward": _mean([score for score, _ in scored.values()]),
        "tokens": _mean([tokens for _, tokens in scored.values()]),
        "answers": len(scored),
        "over_start": _mean([(a > b) + (a == b) / 2 for a, b in both if a is not None and b is not None]),
    }
    if number:
        report = json.loads((folder / "pairs" / "pairs-report.json").read_text("utf-8"))
        metrics = json.loads((folder / "model" / "summary.json").read_text("utf-8"))["metrics"]
        row |= {"pairs": report["kept"], "accuracy": metrics.get("eval_rewards/accuracies")}
    if row["reward"] is None:
        log.warning("%s: no fresh answer has a score (a comparison needs two), so the table has none.", folder.name)
    return row


def _scored(path: Path) -> dict[str, tuple[float | None, float | None]]:
    """Of each prompt the score of its fresh answer, and the length where it was counted."""
    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[row["prompt_id"]] = row["scores"][0], row["sampled"]["tokens"][0]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
        cells = [
            str(row["round"] or "start"),
            _cell(row["reward"], ".4g"),
            _cell(row["over_start"], ".1%") if row["round"] else "",
            _cell(row["tokens"], ".1f"),
            str(row["answers"]),
            str(row.get("pairs", "")),
            _cell(row.get("accuracy"), ".1%"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
