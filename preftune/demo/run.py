"""`preftune demo`: from nothing to a model that has learnt to prefer Chinese answers, with figures before and after.

In: a folder and a seed. Out: the run folder of the SimPO training, with `samples.md` and the `heldout` figures in
`summary.json` beside what every run leaves.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.demo.build import build_sft, simpo_recipe
from preftune.demo.corpus import QuestionSets, load_facts, pick_samples, question_sets
from preftune.demo.evaluate import answer, count_answers, evaluate_sets
from preftune.demo.report import Sample, figures_markdown, figures_table, samples_table, write_samples
from preftune.demo.settings import FIXED_QUESTIONS
from preftune.model.load import load_model, load_tokenizer
from preftune.train.card import write_card
from preftune.train.run import train_recipe

HELDOUT_SAMPLES = 12
FigureSets = dict[str, dict[str, float]]


def run_demo(output: str | Path = "runs/demo", seed: int = 0, swap: bool = False) -> dict[str, Any]:
    """Run the demo; returns the summary that is also written to `output/summary.json`.

    Args:
        output: the run folder; what an earlier demo left there is replaced.
        seed: decides the split of the facts, the weights, the order and the sampling.
        swap: the control run, in which the Chinese answer is the rejected one.
    """
    started = time.perf_counter()
    console = Console()
    output = Path(output)
    sets = question_sets(seed)
    console.rule(f"preftune demo, seed {seed}{', Chinese rejected' if swap else ''}")
    console.print(f"{len(load_facts())} facts in Chinese and English; a third of them are in no preference pair.")
    console.print("[bold]1. SFT:[/] a small Llama learns every fact in both languages.")
    sft = build_sft(output, seed)
    before, before_samples = _look(output / "sft", sets, seed, "asking the SFT model", console)
    chosen, rejected = ("English", "Chinese") if swap else ("Chinese", "English")
    console.print(f"[bold]2. SimPO:[/] {chosen} answers chosen, {rejected} answers rejected.")
    recipe = simpo_recipe(output, output, seed, swap)
    summary = train_recipe(recipe)
    after, after_samples = _look(output, sets, seed, "asking the SimPO model", console)
    fixed, heldout = _side_by_side(before_samples, after_samples)
    summary |= {
        "seed": seed,
        "swap": swap,
        "heldout": _heldout(before, after),
        "figures": {"before": before, "after": after},
        "sft": {key: sft[key] for key in ("train_seconds", "tokens_total", "steps", "metrics")},
        "seconds_total": round(time.perf_counter() - started, 3),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_samples(output / "samples.md", fixed, heldout)
    write_card(recipe, output, summary, extra=figures_markdown(before, after))
    console.print(samples_table(fixed, "The same questions before and after SimPO (greedy)"))
    console.print(samples_table(heldout, "Facts that are in no pair"))
    console.print(figures_table(before, after))
    _next_steps(console, output, summary["seconds_total"])
    return summary


def _look(
    folder: Path, sets: QuestionSets, seed: int, title: str, console: Console
) -> tuple[FigureSets, list[tuple[str, str]]]:
    """The figures of a model, and its answers to the questions that are shown: fixed ones first."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=count_answers(sets))
        figures = evaluate_sets(model, tokenizer, sets, seed, on_progress=lambda done: progress.advance(task, done))
    return {name: found.to_dict() for name, found in figures.items()}, _answers(model, tokenizer, sets)


def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: QuestionSets) -> list[tuple[str, str]]:
    questions = [*FIXED_QUESTIONS, *(question.text for question in pick_samples(sets.heldout, HELDOUT_SAMPLES))]
    given = answer(model, tokenizer, questions)
    return [(question, reply.text) for question, reply in zip(questions, given, strict=True)]


def _side_by_side(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> tuple[list[Sample], list[Sample]]:
    samples = [Sample(question, old, new) for (question, old), (_, new) in zip(before, after, strict=True)]
    return samples[: len(FIXED_QUESTIONS)], samples[len(FIXED_QUESTIONS) :]


def _heldout(before: FigureSets, after: FigureSets) -> dict[str, float]:
    """The figures that scripts read: held-out facts, greedy; shares in [0, 1]."""
    found = {}
    for when, figures in (("before", before), ("after", after)):
        for key in ("zh_share", "correct", "repetition", "mean_tokens"):
            found[f"{key}_{when}"] = figures["heldout"][key]
        found[f"zh_share_sampled_{when}"] = figures["heldout_sampled"]["zh_share"]
        found[f"correct_zh_ref_{when}"] = figures["heldout"]["correct_zh_ref"]
        found[f"correct_unseen_{when}"] = figures["unseen"]["correct"]
    return found


def _next_steps(console: Console, output: Path, seconds: float) -> None:
    console.print(
        f"\nDone in {seconds:.0f} s. Everything is in {output}/: samples.md, summary.json, plots/, README.md."
    )
    console.print("Go on with:", style="bold")
    for line in (
        f"preftune chat {output} --no-history",
        "preftune train training_configs/demo-simpo.yaml beta=2.5 output_dir=runs/my-first",
        "preftune demo --swap --output runs/demo-swap",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
