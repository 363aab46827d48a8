"""Evaluation: fresh responses to held-out prompts, their figures, and a table of the first few of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from preftune.objectives.ppo import PPO, Sum
from preftune.train.ppo.models import Models
from preftune.train.ppo.prompts import Prompt
from preftune.train.ppo.rollout import Rollout, roll_out
from preftune.train.ppo.sampling import Sampling

FOLDER = "samples"
SHOWN_ROWS = 8


def evaluate(
    models: Models,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    ppo: PPO,
    sampling: Sampling,
    *,
    seed: int,
    summed: Sum,
) -> tuple[dict[str, float], Rollout | None]:
    """The means of a rollout's figures over the prompts of all processes, and this process's rollout.

    Sampled with the same seed each time, whatever training has drawn, and training draws on as if nothing had happened.
    """
    rollout = None
    sums: torch.Tensor | None = None
    with torch.random.fork_rng(devices=[models.policy.device] if models.policy.device.type == "cuda" else []):
        torch.manual_seed(seed)
        if prompts:
            rollout = roll_out(models, prompts, tokenizer, ppo, sampling)
    names = ("objective/scores", "objective/kl", "lengths/response", "ended")
    figures = rollout.to_metrics(ppo) if rollout else {}
    mine = [[float(figures[name].sum()) for name in names] if rollout else [0.0] * len(names), [len(prompts)] * 4]
    sums = summed(torch.tensor(mine, device=models.policy.device))
    means = (sums[0] / sums[1].clamp(min=1)).tolist()
    return {f"eval_{name}": value for name, value in zip(names, means, strict=True)}, rollout


def write_samples(
    folder: Path, step: int, prompts: Sequence[Prompt], rollout: Rollout, console: Console | None = None
) -> Path:
    """`samples/step-N.md` in the run folder, and the same table on a terminal."""
    rows = [
        (prompt.messages[-1].content, text, f"{score:.3g}")
        for prompt, text, score in zip(prompts, rollout.texts, rollout.scores.tolist(), strict=True)
    ][:SHOWN_ROWS]
    path = folder / FOLDER / f"step-{step}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# Responses after step {step}", "", "| prompt | response | score |", "|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console = console or Console(stderr=True)
    if console.is_terminal:
        table = Table("prompt", "response", "score", title=f"Responses after step {step}", title_justify="left")
        for prompt, text, score in rows:
            table.add_row(prompt[:200], text[:400], score)
        console.print(table, markup=False)
    return path


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
